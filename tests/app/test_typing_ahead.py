"""Keys that are typed before a dialog or a screen has opened: each arrives there, none is lost, and the app stays."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.command import CommandPalette
from textual.keys import _character_to_key
from textual.pilot import Pilot
from textual.widgets import Input

import cockpit
from cockpit import key_queue
from cockpit.connection.engine_app import READING
from cockpit.screens import SCREENS, chat_targets, data
from cockpit.screens.chat import ChatScreen
from cockpit.screens.data import DataScreen
from cockpit.screens.help import HelpScreen
from cockpit.screens.row_browser import RowBrowserScreen
from cockpit.screens.runs import RunsScreen
from cockpit.state.chat_tree import ChatTree
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.export_dialog import ExportDialog
from cockpit.widgets.picker import Picker
from cockpit.widgets.prompt import Prompt
from engine.protocol.home import Home
from engine.protocol.messages import Set, Stop
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import run_app, screen_text, until


def type_ahead(app: App[Any], *parts: str | events.Event) -> None:
    """Post a whole burst without waiting, as a terminal does when the bytes of all keys arrive in one packet. A part
    is a key's name such as "enter", a text, or an event."""
    for part in parts:
        if isinstance(part, events.Event):
            app.post_message(part)
        elif part in ("enter", "escape", "down", "tab") or "+" in part:
            app.post_message(events.Key(part, {"enter": "\r"}.get(part)))
        else:
            for character in part:
                key = character if character.isalnum() else _character_to_key(character)
                app.post_message(events.Key(key, character))


class Case:
    """One burst: where it begins, what has to be there, what is typed, and what must have come of it."""

    def __init__(
        self,
        first: str,
        keys: tuple[str | events.Event, ...],
        expected: Callable[[Pilot[None], Any], bool],
        prepare: Callable[[Pilot[None]], None] = lambda pilot: None,
    ) -> None:
        self.first, self.keys, self.expected, self.prepare = first, keys, expected, prepare


SEEN: dict[str, list[Any]] = {}
"""What the screens were told, by method."""


def with_rows(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, DataScreen)
    screen.summary = {"parts": {"train": 9}, "stages": ["clean", "split", "tokenize"]}


def with_question(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    screen.chat = ChatTree().add_question("why")


def dialog_holds(kind: type, text: str) -> Callable[[Pilot[None], Any], bool]:
    """The dialog is on top and its input holds this."""

    def holds(pilot: Pilot[None], engine: FakeEngine) -> bool:
        screen = pilot.app.screen
        return isinstance(screen, kind) and screen.query_one(Input).value == text

    return holds


def told(method: str, *arguments: Any) -> Callable[[Pilot[None], Any], bool]:
    return lambda pilot, engine: SEEN.get(method) == list(arguments) and len(pilot.app.screen_stack) == 1


def asked(operation: str, check: Callable[[Any], bool]) -> Callable[[Pilot[None], Any], bool]:
    def found(pilot: Pilot[None], engine: FakeEngine) -> bool:
        steered = [message for name, message in engine.requests if name == operation]
        return len(steered) == 1 and check(steered[0])

    return found


def on_screen(kind: type, check: Callable[[Any], Any]) -> Callable[[Pilot[None], Any], bool]:
    return lambda pilot, engine: isinstance(pilot.app.screen, kind) and bool(check(pilot.app.screen))


CASES = {
    "find": Case("data", ("/question", "enter"), told("search", "question"), with_rows),
    "find, pasted": Case("data", ("/", events.Paste("quest"), "ion", "enter"), told("search", "question"), with_rows),
    "find, and Esc": Case("data", ("/q", "escape"), lambda pilot, _: len(pilot.app.screen_stack) == 1, with_rows),
    "find, Enter twice": Case("data", ("/q", "enter", "enter"), told("search", "q"), with_rows),
    "find twice": Case("data", ("/q", "enter", "/1/q", "enter"), told("search", "q", "1/q"), with_rows),
    "open a file": Case("data", ("o/q/rows.jsonl", "enter"), told("open", Path("/q/rows.jsonl"))),
    "choose a stage": Case("data", ("rsplit", "enter"), told("_run_stages", "split"), with_rows),
    "digit, key, text": Case("dashboard", ("2o/q", "enter"), told("open", Path("/q"))),
    "digits and back": Case("dashboard", ("2", "3", "escape", "o/q", "enter"), told("open", Path("/q"))),
    "filter runs": Case(
        "dashboard",
        ("4/qlora",),
        on_screen(RunsScreen, lambda screen: screen.query_one("#filter", Input).value == "qlora"),
    ),
    "help and back": Case("dashboard", ("4?q/q",), on_screen(RunsScreen, lambda s: s.query_one(Input).value == "q")),
    "palette": Case("dashboard", (":quit",), dialog_holds(CommandPalette, "quit")),
    "export": Case(
        "dashboard",
        ("X-q", "enter"),
        on_screen(ExportDialog, lambda screen: screen.out == f"{demo_run().id}-export-q"),
    ),
    "export from runs": Case(
        "runs", ("X-q", "enter"), on_screen(ExportDialog, lambda screen: screen.out == f"{demo_run().id}-export-q")
    ),
    "change a setting": Case(
        "dashboard",
        ("alearning", "enter", "q", "enter", "ctrl+u", "2e-4", "enter"),
        asked("set", lambda message: message == Set(run=demo_run().id, changes={"training.learning_rate": 2e-4})),
    ),
    "stop": Case("dashboard", ("xky",), asked("stop", lambda message: message == Stop(run=demo_run().id, now=True))),
    "save a conversation": Case("chat", ("ctrl+s", "-q"), dialog_holds(Prompt, "why-q"), with_question),
    "pick a model": Case("chat", ("ctrl+t", "q/wen"), dialog_holds(Picker, "q/wen")),
    "ask without a model": Case("chat", ("hello", "enter", "qwen"), dialog_holds(Picker, "qwen")),
    "leave, tally, close": Case(
        "chat", ("escape", "tq4"), on_screen(RunsScreen, lambda screen: True)
    ),
    "save a profile": Case(
        "dashboard", ("3", "ctrl+s", "-q"), lambda pilot, _: dialog_value(pilot).endswith(".yaml-q")
    ),
}  # fmt: skip


def dialog_value(pilot: Pilot[None]) -> str:
    return pilot.app.screen.query_one(Input).value if isinstance(pilot.app.screen, Prompt) else ""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The screens write to `SEEN` what they would ask their workers; looking for models takes a while and finds none."""
    SEEN.clear()

    def record(name: str) -> Callable[..., Awaitable[None]]:
        async def write(screen: Any, argument: Any) -> None:
            SEEN.setdefault(name, []).append(argument)

        return write

    async def find(home: Home) -> list[dict[str, Any]]:
        await asyncio.sleep(0.2)
        return []

    monkeypatch.setattr(RowBrowserScreen, "search", record("search"))
    monkeypatch.setattr(DataScreen, "_run_stages", record("_run_stages"))
    monkeypatch.setattr(DataScreen, "open", lambda screen, path: SEEN.setdefault("open", []).append(path))
    monkeypatch.setattr(chat_targets, "find_local_models", find)
    yield


@pytest.mark.parametrize("name", CASES)
async def test_a_burst_arrives_where_it_was_typed_for(name: str, recorded: None, tmp_path: Path) -> None:
    case, engine = CASES[name], FakeEngine(demo_run())
    async with run_app(engine, first=case.first, home=Home(tmp_path)) as pilot:
        case.prepare(pilot)
        type_ahead(pilot.app, *case.keys)
        await until(pilot, lambda: case.expected(pilot, engine) or not pilot.app.is_running)
        assert pilot.app.is_running
