"""No widget sends a control character to the terminal that comes from elsewhere, and parses no foreign text as
markup."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.segment import Segment
from rich.text import Text
from textual.color import Color
from textual.content import Content
from textual.pilot import Pilot

from cockpit.control_filter import SHOW_CONTROLS
from cockpit.screens.chat import ChatScreen
from cockpit.state.chat_tree import ChatReply, ChatTree
from cockpit.widgets.sampling import Sampling
from engine.protocol.messages import Problem
from tests.app import fake
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, run_app, screen_text, until
from tests.hostile import CONTROLS, EVIL

PROBLEM = Problem(code=EVIL, title=EVIL, cause=EVIL, hint=EVIL, place=EVIL)
SHOWN = "]52;c;RVZJTA=="


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is parsed as markup, if it is foreign."""
    found: list[str] = []
    for owner in (Content, Text):
        original = owner.from_markup

        def record(markup: Any, *arguments: Any, original: Any = original, **options: Any) -> Any:
            if "KEY" in str(markup) and not str(markup).startswith(("\\", "✗ \\")):
                found.append(str(markup))
            return original(markup, *arguments, **options)

        monkeypatch.setattr(owner, "from_markup", record)
    return found


def hostile_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    run = fake.demo_run(id=EVIL, name=EVIL, base=EVIL, phase=EVIL, reason=EVIL, directory=EVIL, profile=EVIL,
                        metrics={EVIL: 1.0, "train/loss": 1.0}, problem=PROBLEM)  # fmt: skip
    engine = FakeEngine(run)
    warning = {"kind": "warning", "time": 1.0, "attempt": 1, "step": 1, "message": EVIL, "hint": EVIL, "code": EVIL}
    bad = fake.bad_batch()
    bad["reason"], bad["rows"] = EVIL, [row | {"text": EVIL, "file": EVIL} for row in bad["rows"]]
    told = [
        *fake.entries(), fake.ledger(3, EVIL, EVIL, EVIL), warning, bad, fake.sample(25, EVIL, 1.0) | {"prompt": EVIL},
        {"kind": "evaluation", "time": 1.0, "attempt": 1, "step": 26, "values": {EVIL: 1.0, "eval/loss": 0.4}},
    ]  # fmt: skip
    monkeypatch.setattr(fake, "entries", lambda: told)
    engine.log = f"{EVIL}\n" * 50
    return engine


def assert_harmless(pilot: Pilot[None], parsed: list[str], shown: str = SHOWN) -> None:
    strips = pilot.app.screen._compositor.render_strips()
    text = "".join(segment.text for strip in strips for segment in strip)
    assert not CONTROLS.findall(text.replace("\n", "")), screen_text(pilot)
    assert shown in text, screen_text(pilot)
    assert not parsed, parsed
    assert {sum(segment.cell_length for segment in strip) for strip in strips} == {pilot.app.size.width}


async def test_the_dashboard_its_dialogs_and_the_runs(monkeypatch: pytest.MonkeyPatch, parsed: list[str]) -> None:
    async with run_app(hostile_engine(monkeypatch), (160, 50)) as pilot:
        await until(pilot, lambda: SHOWN in screen_text(pilot))
        assert_harmless(pilot, parsed)
        for key in ("e", "b", "h", "s", "x", "l", "r"):
            await pilot.press(key)
            await pilot.pause(0.1)
            assert_harmless(pilot, parsed)
            await pilot.press("escape")
        await pilot.press("4")
        await until(pilot, lambda: "sorted by" in screen_text(pilot))
        await pilot.pause(0.2)
        assert_harmless(pilot, parsed, "␛]52")
        pilot.app.notify(EVIL, title=EVIL)
        pilot.app.screen.notify(EVIL, title=EVIL)
        await pilot.pause(0.2)
        assert_harmless(pilot, parsed)


async def test_the_chat(monkeypatch: pytest.MonkeyPatch, parsed: list[str]) -> None:
    async with run_app(hostile_engine(monkeypatch), HIGH, first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        tree = ChatTree().add_question(EVIL)
        facts = {"finish": EVIL, "problem": EVIL}
        said = ["text " + EVIL, json.dumps({EVIL: EVIL}), f"<think>{EVIL}</think>{EVIL}", json.dumps([{EVIL: [EVIL]}])]
        for text in said:
            tree = tree.add_answer(tree.path[-1].id, [ChatReply(EVIL, text, facts), ChatReply(EVIL, "x", {})])
            tree = tree.add_question(EVIL)
        await screen.conversation.show(tree)
        await pilot.pause(0.3)
        assert_harmless(pilot, parsed)
        await screen.conversation.show_problem(Problem(code="x", title=EVIL, cause=EVIL, hint=EVIL))
        await screen.conversation.show_problem(Problem(code="x", title="[/x]", cause="[/x]", hint="[/x]"))
        await pilot.pause(0.3)
        assert "✗ [/x]" in screen_text(pilot)
        assert_harmless(pilot, parsed)
        screen.query_one(Sampling).system = EVIL
        await pilot.pause(0.1)
        assert_harmless(pilot, parsed)


def test_a_line_keeps_its_width_and_its_frame() -> None:
    frame = Segment("│")
    for padding in (0, 1, 5, 90):
        line = [frame, Segment(f"a{EVIL}"), Segment(" " * padding), frame]
        width = Segment.get_line_length(line)
        applied = SHOW_CONTROLS.apply(line, Color(0, 0, 0))
        text = "".join(segment.text for segment in applied)
        assert Segment.get_line_length(applied) == width and not CONTROLS.findall(text)
        if padding == 90:
            assert text.startswith("│a␛]52;c;RVZJTA==␇") and text.endswith("│")
    plain = [frame, Segment("汉字 text")]
    assert SHOW_CONTROLS.apply(plain, Color(0, 0, 0)) is plain
