"""The forecast on the profile screen: live, one at a time, never of an earlier text; and the settings that fit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cockpit.screens.profile import ProfileScreen
from cockpit.widgets import forecast_line
from cockpit.widgets.fit_dialog import FitDialog
from engine.config.profile import parse
from engine.protocol.home import Home
from engine.protocol.messages import Answer, Message, Nothing, Problem, ProblemError, Service
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

GB = 10**9
TEXT = """name: mine
model: {base: smollm2-135m-instruct}
data: {train: [{source: triples/train.jsonl}]}
training:
  micro_batch: 1  # rows
"""
WAYS = [
    {"settings": {}, "time": 1.0, "device_bytes": 23 * GB, "host_bytes": 3 * GB, "verdict": "near"},
    {
        "settings": {"training.micro_batch": 2, "training.accumulation": 4, "launch.strategy": "zero2"},
        "time": 1.33, "device_bytes": 9 * GB, "host_bytes": 3 * GB, "verdict": "fits",
    },
]  # fmt: skip


class Forecasts(FakeEngine):
    """Forecasts as many GB as a micro-batch has rows, once `answering` allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.answering = asyncio.Event()
        self.opening = asyncio.Event()
        self.opening.set()
        self.opened = self.closed = 0
        self.asked: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.problem: Problem | None = None
        self.at_once = self.most_at_once = 0

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        asked: Any = message
        match operation:
            case "service_open":
                self.opened += 1
                await self.opening.wait()
                return Service(id=f"fit-{self.opened}", kind=asked.kind, state="ready")
            case "service_close":
                self.closed += 1
                return Nothing()
            case "service_cancel":
                self.cancelled.append(asked.request)
                return Nothing()
            case "service_ask":
                self.asked.append({"question": asked.question, "request": asked.request, **asked.arguments})
                await self.answering.wait()
                return Answer(result=self._answer(asked.question, asked.arguments))
        return await super().request(operation, message, timeout)

    def _answer(self, question: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self.problem is not None:
            raise ProblemError(self.problem)
        if question == "fit":
            return {"cards": 1, "card_bytes": 24 * GB, "ways": WAYS}
        rows = parse(arguments["profile"], "profile", Path(arguments["directory"])).training.micro_batch
        sizes = {"device_bytes": rows * GB, "host_bytes": 31 * GB, "disk_bytes": 12 * GB, "card_bytes": 24 * GB}
        verdict = "fits" if rows < 20 else "too_large"
        return sizes | {"seconds": 10_800.0, "error_percent": 10.0, "verdict": verdict, "rows_measured": rows < 4}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(forecast_line, "DEBOUNCE", 0.05)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "home" / "profiles" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(TEXT)
    return Home(tmp_path / "home")


async def _open(pilot: Any) -> ProfileScreen:
    screen = pilot.app.screen
    assert isinstance(screen, ProfileScreen)
    await until(pilot, lambda: screen.file and screen.file.name == "mine" and "✓ valid" in screen_text(pilot))
    return screen


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_the_forecast_follows_the_text(size: tuple[int, int], home: Home) -> None:
    engine = Forecasts()
    async with run_app(engine, size, home=home, first="profile") as pilot:
        screen = await _open(pilot)
        await until(pilot, lambda: engine.asked and "micro_batch: 1" in engine.asked[-1]["profile"])
        assert "… computing what it takes" in screen_text(pilot)
        asked = len(engine.asked)
        screen.editor.load_text(TEXT + "# a remark changes nothing\n")
        await until(pilot, lambda: "remark" in screen.result.text)
        screen.editor.load_text(TEXT.replace("batch: 1", "batch: 3"))
        await until(pilot, lambda: "micro_batch: 3" in engine.asked[-1]["profile"])
        await until(pilot, lambda: engine.cancelled[-1:] == [engine.asked[-2]["request"]])
        assert len(engine.asked) == asked + 1
        engine.answering.set()  # both answers arrive, the one for one row too
        await until(pilot, lambda: "✓ 3.0 of 24 GB ±0.3 a card · 31.0 GB host · 12.0 GB disk" in screen_text(pilot))
        assert "1.0 of 24 GB" not in screen_text(pilot) and "rows assumed" not in screen_text(pilot)
        screen.editor.load_text(TEXT.replace("batch: 1", "batch: 30"))
        await until(pilot, lambda: "✗ does not fit: 30.0 of 24 GB ±3.0 a card" in screen_text(pilot))
        screen.editor.load_text(TEXT.replace("batch: 1", "batch: 0"))
        await until(pilot, lambda: "no forecast before the problems are mended" in screen_text(pilot))
        engine.problem = Problem(code="forecast.unsupported", title="There is none", cause="its base is not here")
        screen.editor.load_text(TEXT.replace("batch: 1", "batch: 4"))
        await until(pilot, lambda: "no forecast: its base is not here" in screen_text(pilot))
        assert_fits(pilot)


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_the_chosen_settings_that_fit_are_put_into_the_text(size: tuple[int, int], home: Home) -> None:
    engine = Forecasts()
    engine.answering.set()
    async with run_app(engine, size, home=home, first="profile") as pilot:
        screen = await _open(pilot)
        await pilot.press("F")
        await until(pilot, lambda: isinstance(pilot.app.screen, FitDialog) and pilot.app.screen.ways)
        await until(pilot, lambda: "launch.strategy: zero2" in screen_text(pilot))
        for wanted in ("A CARD", "23.0 GB", "as it is", "hardly fits", "9.0 GB", "× 1.33", "training.micro_batch: 2"):
            assert wanted in screen_text(pilot)
        assert_fits(pilot)
        names = ("training.micro_batch: 2", "training.accumulation: 4", "launch.strategy: zero2", "CHANGES", "as it is")
        lines = [(line, name) for line in screen_text(pilot).splitlines() for name in names if name in line]
        places = {line.find(name) for line, name in lines}
        assert len(places) == 1
        await pilot.press("down", "enter")
        await until(pilot, lambda: "zero2" in screen.editor.text)
        profile = parse(screen.editor.text, "mine", home.root)
        assert (profile.training.micro_batch, profile.training.accumulation) == (2, 4)
        assert "# rows" in screen.editor.text
        await pilot.press("F")
        await until(pilot, lambda: isinstance(pilot.app.screen, FitDialog))
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen)


async def test_nothing_is_asked_of_a_host_without_the_service(home: Home) -> None:
    async with run_app(FakeEngine(), home=home, first="profile") as pilot:
        await _open(pilot)
        await until(pilot, lambda: "no forecast: There are no services here" in screen_text(pilot))


async def test_the_service_ends_whenever_nothing_is_asked_for_a_while(home: Home, monkeypatch: Any) -> None:
    monkeypatch.setattr(forecast_line, "IDLE", 0.05)
    engine = Forecasts()
    async with run_app(engine, home=home, first="profile") as pilot:
        screen = await _open(pilot)
        await until(pilot, lambda: engine.asked)
        await pilot.press("F")
        await until(pilot, lambda: len(engine.asked) == 2)
        await pilot.press("escape")
        await until(pilot, lambda: engine.cancelled == [engine.asked[1]["request"]])
        assert screen.forecast._idle is None  # the forecast is still waited for
        engine.answering.set()
        await until(pilot, lambda: engine.closed == 1)
        screen.editor.load_text(TEXT.replace("batch: 1", "batch: 3"))
        await until(pilot, lambda: engine.closed == 2)
        assert engine.opened == 2


async def test_a_service_that_opens_too_late_is_closed(home: Home) -> None:
    engine = Forecasts()
    engine.opening.clear()
    async with run_app(engine, home=home, first="profile") as pilot:
        screen = await _open(pilot)
        await until(pilot, lambda: engine.opened)
        await screen.forecast.service.close()
        assert not engine.closed
        engine.opening.set()
        await until(pilot, lambda: engine.closed == 1)


async def test_the_code_of_a_model_does_not_run_unasked(home: Home) -> None:
    engine = Forecasts()
    async with run_app(engine, home=home, first="profile") as pilot:
        screen = await _open(pilot)
        profile = parse(TEXT, "mine", home.root)
        trusting = replace(profile, model=profile.model.model_copy(update={"trust_remote_code": True}))
        screen.forecast.follow(trusting)
        await until(pilot, lambda: "no forecast unasked" in screen_text(pilot))
        assert not any("trust_remote_code: true" in each["profile"] for each in engine.asked)
