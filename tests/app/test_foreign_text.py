"""Every screen and dialog with text from elsewhere (markup, control characters, wide characters) at every width from
20 columns on: nothing fails, each row fills the screen, and nothing is read as markup. COCKPIT_ALL_SIZES=1 tries more
sizes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot

from cockpit.screens.chat import ChatScreen
from cockpit.screens.data import DataScreen
from engine.protocol.messages import Problem
from tests.app import fake
from tests.app.screen import HIGH, run_app, until
from tests.app.services import FakeServices
from tests.hostile import CONTROLS, EVIL

TEXT = f"[/x] [bold]KEY {EVIL} 抽取三元组"
SIZES = [(20, 10), (34, 24), (80, 24)]
DIALOG_SIZES = [(20, 10), (80, 24)]
if os.environ.get("COCKPIT_ALL_SIZES"):
    SIZES = [(width, height) for width in (20, 24, 30, 34, 36, 40, 59, 60, 100, 150, 220) for height in (10, 24, 60)]
    DIALOG_SIZES = SIZES


@asynccontextmanager
async def hostile_app(first: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pilot[None]]:
    problem = Problem(code="x", title=TEXT, cause=TEXT, hint=TEXT, place=TEXT)
    runs = [
        fake.demo_run(id=f"{number} {TEXT}", name=TEXT, base=TEXT, phase=TEXT, reason=TEXT, directory=TEXT,
                      profile=TEXT, problem=problem, state=state, created=100.0 - number)
        for number, state in enumerate(("running", "failed", "queued", "completed", "paused"))
    ]  # fmt: skip
    warning = {"kind": "warning", "time": 1.0, "attempt": 1, "step": 1, "message": TEXT, "hint": TEXT, "code": TEXT}
    told = [*fake.entries(), warning, fake.ledger(3, TEXT, TEXT, TEXT), fake.sample(25, TEXT, 1.0) | {"prompt": TEXT}]
    monkeypatch.setattr(fake, "entries", lambda: told)
    engine = FakeServices(*runs, text=TEXT, devices=3)
    engine.log = f"{TEXT}\n" * 30
    async with run_app(engine, HIGH, first=first) as pilot:
        yield pilot


async def assert_all_sizes(pilot: Pilot[None], what: str, sizes: list[tuple[int, int]] = SIZES) -> None:
    """The last size stays: each further one is the whole screen laid out anew."""
    for size in sizes:
        await pilot.resize_terminal(*size)
        await until(pilot, lambda size=size: pilot.app.screen._compositor.size == size)  # laid out anew
        strips = pilot.app.screen._compositor.render_strips()
        assert len(strips) == size[1], (what, size)
        assert {sum(segment.cell_length for segment in strip) for strip in strips} == {size[0]}, (what, size)
        text = "".join(segment.text for strip in strips for segment in strip)
        assert not CONTROLS.findall(text), (what, size)
        assert pilot.app.faults == 0, (what, size)  # type: ignore[attr-defined]


KEYS = {
    "dashboard": ["", "question_mark", "b", "a", "l", "x", "v", "w", "X", "colon", "E"],
    "runs": ["", "slash", "o", "d", "x", "E"],
    "profile": ["", "ctrl+s", "tab", "ctrl+l"],
    "chat": ["", "ctrl+t", "ctrl+g", "ctrl+s", "ctrl+o", "question_mark", "S"],
    "doctor": [""],
}
"""Screen -> the keys that open something over it; each is closed with Esc."""


@pytest.mark.parametrize("first", KEYS)
async def test_a_screen_and_what_opens_over_it(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile_app(first, monkeypatch) as pilot:
        for key in KEYS[first]:
            if key:
                await pilot.press(key)
                await pilot.pause(0.05)
            await assert_all_sizes(pilot, f"{first} {key}", DIALOG_SIZES if key else SIZES)
            if key:
                await pilot.press("escape")


async def test_rows_of_data_in_every_view(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    async with hostile_app("data", monkeypatch) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        path = pilot.app.home.root / "rows.jsonl"  # type: ignore[attr-defined]
        path.write_text("{}")
        screen.open(path)
        await until(pilot, lambda: "train" in screen.stats)
        for keys in ("", "l", "t", "t", "t", "t", "h", "t", "b", "b", "v", "v", "s", "slash", "r"):
            if keys:
                await pilot.press(keys)
            await pilot.pause(0.05)
            await assert_all_sizes(pilot, f"data {keys}", DIALOG_SIZES)
        await pilot.press("escape")


async def test_plain_text_in_the_text_view_and_back() -> None:
    """The answer for the view must not be taken for a part of the row."""
    engine = FakeServices(text="plain words")
    async with run_app(engine, HIGH, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        path = pilot.app.home.root / "rows.jsonl"  # type: ignore[attr-defined]
        path.write_text("{}")
        screen.open(path)
        await until(pilot, lambda: "train" in screen.stats)
        await pilot.press("l")
        for _ in range(9):
            await pilot.press("t")
            await pilot.pause(0.05)
            content = str(screen.query_one("#content").render())  # type: ignore[no-untyped-call]
            assert "plain words" in content and "{'" not in content and "same" not in content


async def test_a_conversation_and_its_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile_app("chat", monkeypatch) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        for number in range(2):
            screen.load(TEXT, beside=bool(number))
            await until(pilot, lambda: not screen.busy and screen.targets and screen.targets[-1].loaded)
            await pilot.press(*"hi", "enter")
            await until(pilot, lambda: screen.chat.turns and screen.chat.turns[-1].is_answer and screen.answer is None)
            await assert_all_sizes(pilot, "chat")
        await screen.conversation.show_problem(Problem(code="x", title=TEXT, cause=TEXT, hint=TEXT))
        await assert_all_sizes(pilot, "chat with a problem")
        for keys in (["escape", "v"], ["p"], ["escape", "a"], ["escape", "w"]):
            await pilot.press(*keys)
            await asyncio.sleep(0.1)
            await assert_all_sizes(pilot, f"chat {keys}", DIALOG_SIZES)


async def test_evaluations_their_replies_and_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile_app("dashboard", monkeypatch) as pilot:
        await pilot.press("E")
        await pilot.pause(0.2)
        for keys in (["enter"], ["t"], ["escape", "o", "up", "o"], ["escape", "n"]):
            await pilot.press(*keys)
            await pilot.pause(0.2)
            await assert_all_sizes(pilot, f"evaluations {keys}", DIALOG_SIZES)
