"""Keys and mouse: what the bar offers can be done, all of it can be clicked, Esc acts once, and help is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual._xterm_parser import XTermParser
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from cockpit.app import CockpitApp
from cockpit.screens import SCREENS
from cockpit.screens.chat import ChatScreen
from cockpit.screens.evaluations import EvaluationsScreen
from cockpit.screens.help import HelpScreen, collect, own_bindings, sentences_of
from cockpit.screens.profile import ProfileScreen
from cockpit.screens.runs import RunsScreen
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.confirm import Confirm
from cockpit.widgets.conversation import Conversation
from cockpit.widgets.form import Form, SettingsList
from cockpit.widgets.key_bar import KeyBar
from engine.protocol import states
from engine.protocol.messages import RunChanged
from tests.app.fake import demo_run
from tests.app.screen import HIGH, LOW, run_app, screen_text, until
from tests.app.services import FakeServices

STEERING = {"Pause", "Continue", "Save", "Eval", "Set", "Stop", "Resume"}
OFFERED = {
    "queued": {"Stop"},
    "preparing": {"Stop"},
    "running": {"Pause", "Save", "Eval", "Set", "Stop"},
    "paused": {"Continue", "Save", "Eval", "Set", "Stop"},
    "stopping": set(),
    "stopped": {"Resume"},
    "failed": {"Resume"},
    "lost": {"Resume"},
    "completed": set(),
}


def bar(pilot: Pilot[None]) -> str:
    return screen_text(pilot).splitlines()[-1]


@pytest.mark.parametrize("first", ["dashboard", "runs"])
async def test_the_bar_offers_what_can_be_done_in_each_state(first: str) -> None:
    assert set(OFFERED) == set(states.STATES)
    engine = FakeServices(demo_run(state="queued"))
    async with run_app(engine, (200, 40), first=first) as pilot:
        for state, offered in OFFERED.items():
            engine.say(RunChanged(run=demo_run(state=state)))
            wanted = offered - ({"Save", "Eval", "Set"} if first == "runs" else set())
            await until(pilot, lambda wanted=wanted: {w for w in STEERING if f" {w} " in bar(pilot)} == wanted, 3)
    async with run_app(engine, (200, 40), first=first, readonly=True) as pilot:
        assert not [word for word in STEERING if f" {word} " in bar(pilot)]


async def test_read_only_offers_no_launch_and_no_vote() -> None:
    async with run_app(FakeServices(demo_run()), readonly=True, first="profile") as pilot:
        await until(pilot, lambda: "^s" in bar(pilot) and "valid" in screen_text(pilot))
        assert "Launch" not in bar(pilot)
        await pilot.press("ctrl+l")
        assert isinstance(pilot.app.screen, ProfileScreen)
        await pilot.press("alt+5")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen))
        chat = pilot.app.screen
        chat.targets[:] = ["one", "two"]  # type: ignore[attr-defined]
        assert chat.check_action("remove", ()) and not chat.check_action("blind", ())
        chat.targets.clear()  # type: ignore[attr-defined]


async def test_keys_of_rows_are_offered_once_there_are_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    about_rows = ("Row", "View", "Batches", "Part", "Find", "Run stages", "Facts")
    engine = FakeServices(demo_run())
    async with run_app(engine, (200, 40), first="data") as pilot:
        await until(pilot, lambda: "No data open" in screen_text(pilot) and " o Open " in bar(pilot))
        assert not [word for word in about_rows if f" {word} " in bar(pilot)]
        pilot.app.screen.open(tmp_path / "x.jsonl")  # type: ignore[attr-defined]
        await until(pilot, lambda: all(f" {word} " in bar(pilot) for word in about_rows))


async def test_profiles_are_picked_by_name() -> None:
    async with run_app(FakeServices(demo_run()), LOW, first="data") as pilot:
        await pilot.press("o")
        await until(pilot, lambda: " sft-lora  built-in" in screen_text(pilot))
        await pilot.press(*"sft-lora", "enter")
        await until(pilot, lambda: "sft-lora  train" in screen_text(pilot))


async def test_a_click_on_the_screens_own_tab_closes_what_lies_on_it() -> None:
    async with run_app(FakeServices(demo_run())) as pilot:
        await pilot.press("m")
        await until(pilot, lambda: "› Metrics" in screen_text(pilot))
        await pilot.click("TopBar", offset=(screen_text(pilot).splitlines()[0].index("Dashboard"), 0))
        await until(pilot, lambda: len(pilot.app.screen_stack) == 1 and "› Metrics" not in screen_text(pilot))
        await pilot.press("2")
        await until(pilot, lambda: pilot.app.current_mode == "data")


async def test_a_paused_run_goes_on_with_the_same_key() -> None:
    engine = FakeServices(demo_run(state="paused"))
    async with run_app(engine) as pilot:
        await pilot.press("p")
        await until(pilot, lambda: "continue" in [operation for operation, _ in engine.requests])
        assert "pause" not in [operation for operation, _ in engine.requests]


async def test_a_resume_names_the_run_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeServices(demo_run(state="failed"))
    async with run_app(engine, first="runs") as pilot:
        await pilot.press("r")
        await until(pilot, lambda: "Resume triples-qlora-1121" in screen_text(pilot))
        await pilot.press("n")
        assert "resume" not in [operation for operation, _ in engine.requests]


async def test_stopping_a_queued_run_offers_no_checkpoint() -> None:
    async with run_app(FakeServices(demo_run(state="queued", step=0))) as pilot:
        await pilot.press("x")
        await until(pilot, lambda: "out of the queue" in screen_text(pilot))
        assert "checkpoint" not in screen_text(pilot).split("queue")[-1]


def find_words(text: str) -> list[re.Match[str]]:
    """The keys of the bar with their titles."""
    return list(re.finditer(r"\S+ [A-Z]\S*", text))


# ── the mouse ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_key_of_the_bar_does_on_a_click_what_it_does_on_a_press(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[str] = []
    monkeypatch.setattr(CockpitApp, "action_simulate_key", lambda app, key: pressed.append(key), raising=False)
    async with run_app(FakeServices(demo_run())) as pilot:
        for name in SCREENS:
            await pilot.app.action_go(name)  # type: ignore[attr-defined]
            await until(pilot, lambda name=name: pilot.app.current_mode == name and len(find_words(bar(pilot))) > 3)
            shown = ""
            while shown != bar(pilot):  # it changes with the focus, which a screen gives when it is shown
                shown = bar(pilot)
                await pilot.pause(0.3)
            pressed.clear()
            at, words = pilot.app.size.height - 1, find_words(bar(pilot))
            for word in words:
                await pilot.click(KeyBar, offset=(word.start() + 1, 0))
            await until(pilot, lambda words=words: len(pressed) >= len(words))
            assert len(pressed) == len(words), (name, pressed, at)
            underlined = [
                segment.text
                for segment in pilot.app.screen._compositor.render_strips()[-1]
                if segment.style and segment.style.underline
            ]
            assert not underlined


async def test_clicks_on_keys_tabs_and_headings() -> None:
    async with run_app(FakeServices(demo_run())) as pilot:
        await until(pilot, lambda: "Stop" in bar(pilot) and "Runs" in screen_text(pilot).splitlines()[0])
        await pilot.click(KeyBar, offset=(bar(pilot).index("Stop"), 0))
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, Confirm))
        await until(pilot, lambda: "Runs" in screen_text(pilot).splitlines()[0])
        await pilot.click("TopBar", offset=(screen_text(pilot).splitlines()[0].index("Runs"), 0))
        await until(pilot, lambda: pilot.app.current_mode == "runs")
        await until(pilot, lambda: "sorted by newest" in screen_text(pilot) and " loss " in screen_text(pilot))
        heading = next(line for line in screen_text(pilot).splitlines() if " loss " in line)
        await pilot.click(DataTable, offset=(heading.index(" loss ") + 2, 0))
        await until(pilot, lambda: "sorted by loss" in screen_text(pilot))
        await until(pilot, lambda: "Dashboard" in screen_text(pilot).splitlines()[0])
        await pilot.click("TopBar", offset=(screen_text(pilot).splitlines()[0].index("Dashboard"), 0))
        await until(pilot, lambda: pilot.app.current_mode == "dashboard")


# ── screens from anywhere, and back ───────────────────────────────────────────────────────────────────────────────


async def test_a_digit_right_after_esc_types_no_other_character() -> None:
    async with run_app(FakeServices()):
        for digit in "0123456789":
            for character in XTermParser().feed(f"\x1b{digit}x"):
                assert str(getattr(character, "character", "")).isascii()


async def test_screens_and_help_from_where_one_types() -> None:
    async with run_app(FakeServices(demo_run()), first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        await pilot.press(*"hi", "f1")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))
        await pilot.press("f1")
        await until(pilot, lambda: pilot.app.screen is screen)
        await pilot.press("alt+3")
        await until(pilot, lambda: isinstance(pilot.app.screen, ProfileScreen) and pilot.app.screen.file)
        pilot.app.screen.editor.focus()  # type: ignore[attr-defined]
        await pilot.press("alt+4")
        await until(pilot, lambda: pilot.app.current_mode == "runs")
        await pilot.press("slash", *"tri", "alt+5")
        await until(pilot, lambda: pilot.app.current_mode == "chat")
        assert screen.query_one(ChatInput).text == "hi"


async def test_esc_acts_once() -> None:
    async with run_app(FakeServices(demo_run(), demo_run(id="other")), HIGH) as pilot:
        await pilot.press("4")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))
        runs = pilot.app.screen
        await pilot.press("slash", *"tri")
        await pilot.press("escape")
        assert pilot.app.screen is runs and not runs.query_one("#filter", Input).has_class("-open")
        await pilot.press("o")
        await until(pilot, lambda: runs.has_class("-overlay"))
        await pilot.press("escape")
        await until(pilot, lambda: not runs.has_class("-overlay"))
        assert pilot.app.screen is runs
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.current_mode == "dashboard")
        await pilot.press("3")
        await until(pilot, lambda: isinstance(pilot.app.screen, ProfileScreen) and pilot.app.screen.file)
        profile = pilot.app.screen
        assert isinstance(profile, ProfileScreen)
        await until(pilot, lambda: profile.form.fields)
        profile.form.settings.focus()
        await pilot.press("enter")
        await until(pilot, lambda: profile.form.has_class("editing"))
        await pilot.press("escape")
        assert pilot.app.screen is profile and not profile.form.has_class("editing")
        profile.editor.focus()
        await pilot.press("escape")
        assert pilot.app.screen is profile and profile.focused is profile.form.settings
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.current_mode == "dashboard")


async def test_results_have_a_way_in_and_out() -> None:
    async with run_app(FakeServices(demo_run())) as pilot:
        await pilot.press("E")
        await until(pilot, lambda: isinstance(pilot.app.screen, EvaluationsScreen))
        await until(pilot, lambda: "Dashboard › Results" in screen_text(pilot) and "Esc Back" in bar(pilot))
        await pilot.press("4")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))
        await pilot.press("1")
        await until(pilot, lambda: isinstance(pilot.app.screen, EvaluationsScreen))
        await pilot.press("1")
        await until(pilot, lambda: len(pilot.app.screen_stack) == 1)
        await pilot.press("E")
        await until(pilot, lambda: isinstance(pilot.app.screen, EvaluationsScreen))
        await pilot.press("q")
        await until(pilot, lambda: len(pilot.app.screen_stack) == 1)
        assert pilot.app.is_running


# ── help ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_help_lists_the_screens_own_keys_first_in_sentences() -> None:
    async with run_app(FakeServices(demo_run()), LOW) as pilot:
        for name in SCREENS:
            await pilot.app.action_go(name)  # type: ignore[attr-defined]
            await pilot.pause(0.1)
            nodes = [pilot.app.screen, pilot.app, Form(), SettingsList(), Conversation(), ChatInput()]
            for node in nodes:
                told = {action for group in sentences_of(node).values() for action in group}
                keys = {each.action for each in own_bindings(node) if not each.action.startswith("go(")}
                assert keys == told, (type(node).__name__, keys ^ told)
            await pilot.press("f1")
            await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))
            await pilot.pause(0.1)
            text = screen_text(pilot)
            assert "`" not in text and "Scroll Up" not in text
            screen = pilot.app.screen_stack[-2]
            _, key, sentence, _ = next(collect(screen))
            assert any(sentence in group.values() for group in sentences_of(screen).values())
            top = next(at for at, line in enumerate(text.splitlines()) if "Help" in line)
            assert f"{key}  {sentence[:30]}" in text.splitlines()[top + 2]
            assert not [line for line in text.splitlines() if "←→  " in line], "two keys, two sentences"
            await pilot.press("escape")


def test_a_binding_has_one_key_a_state() -> None:
    """Two actions on one key need states that exclude each other; only pausing and going on share one."""
    for screen in (RunsScreen, EvaluationsScreen, ProfileScreen, ChatScreen):
        keys = [each.key for each in Binding.make_bindings(screen.BINDINGS) if each.key != "p"]
        assert len(keys) == len(set(keys)), screen
