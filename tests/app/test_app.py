"""The app itself: connecting, losing the engine, leaving, help and palette, read-only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from textual.app import App

from cockpit.app import CockpitApp
from engine.protocol.home import Home
from engine.protocol.messages import Message, Problem, ProblemError
from tests.app.fake import FakeEngine, demo_run, telemetry
from tests.app.screen import LOW, run_app, screen_text, until


async def test_an_engine_that_does_not_start_is_explained_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.connection.engine_app.RETRY", 1.0)
    fake = FakeEngine(demo_run())
    attempts: list[object] = []

    async def connect(home: object) -> FakeEngine:
        attempts.append(home)
        if len(attempts) == 1:
            raise ProblemError(
                Problem(title="The engine did not start", cause="its log is empty", hint="read engine.log")
            )
        return fake

    app = CockpitApp(Home(Path("/nonexistent")), connect=connect)
    async with app.run_test(size=LOW, notifications=True) as pilot:
        await until(
            pilot, lambda: "The engine did not start" in screen_text(pilot) and "reconnecting" in screen_text(pilot)
        )
        await until(pilot, lambda: "● running" in screen_text(pilot))


async def test_silence_counts_as_a_lost_engine_until_it_is_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.connection.engine_app.SILENCE", 0.2)
    fake = FakeEngine(demo_run())
    fake.period = 60.0
    async with run_app(fake, LOW) as pilot:
        await until(pilot, lambda: "○ reconnecting" in screen_text(pilot))
        assert "62 %" in screen_text(pilot)  # what is known stays on the screen
        fake.say(telemetry())  # no snapshot follows when this app alone stood still
        await until(pilot, lambda: pilot.app.state.connection == "attached")  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_leaving_asks_the_engine_for_nothing(key: str) -> None:
    fake = FakeEngine(demo_run())
    async with run_app(fake, LOW) as pilot:
        await pilot.press(key)
        await pilot.pause(0.1)
    reading = {"show", "series", "log", "telemetry"}
    assert {operation for operation, _ in fake.requests} <= reading


async def test_a_request_that_fails_while_the_app_leaves_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stalled(FakeEngine):
        async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
            await left.wait()
            raise ProblemError(Problem(code="engine.unreachable", title="gone"))

    left = asyncio.Event()
    async with run_app(Stalled()) as pilot:
        asking = asyncio.create_task(pilot.app.ask("runs"))  # type: ignore[attr-defined]
        pilot.app.exit()
    shown: list[str] = []
    monkeypatch.setattr(App, "notify", lambda app, message, **options: shown.append(message))
    left.set()
    assert await asking is None and not shown


async def test_read_only_steers_nothing() -> None:
    fake = FakeEngine(demo_run())
    async with run_app(fake, readonly=True) as pilot:
        assert "read-only" in screen_text(pilot)
        await pilot.press("p", "s", "x", "y")
        assert await pilot.app.ask("shutdown") is None  # type: ignore[attr-defined]
        await until(pilot, lambda: "This cockpit is read-only" in screen_text(pilot))
        assert not {operation for operation, _ in fake.requests} & {"pause", "save", "stop", "shutdown"}


async def test_help_and_palette_know_the_keys() -> None:
    async with run_app(FakeEngine(demo_run())) as pilot:
        await pilot.press("question_mark")
        await until(pilot, lambda: "Help" in screen_text(pilot))
        assert "Pause the run after the current step." in screen_text(pilot)
        await pilot.press("end")
        await until(pilot, lambda: "1–6" in screen_text(pilot))
        await pilot.press("escape", "colon")
        await until(pilot, lambda: "an action, run, profile" in screen_text(pilot))
        await pilot.press(*"runs")
        await until(pilot, lambda: "screen 4" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.current_mode == "runs")


async def test_nothing_is_painted_while_a_modal_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow link the next key would wait behind it."""
    fake = FakeEngine(demo_run())
    async with run_app(fake) as pilot:
        await pilot.press("question_mark")
        await until(pilot, lambda: "Help" in screen_text(pilot))
        await pilot.pause(0.5)
        painted: list[object] = []
        monkeypatch.setattr(CockpitApp, "_display", lambda app, screen, renderable: painted.append(renderable))
        fake.step(demo_run(), 32)
        await pilot.pause(1.5)  # the dashboard's timers go on
        assert not painted
