"""Keys that are typed before a dialog or a screen has opened: each arrives there, none is lost, and the app stays."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.command import CommandPalette
from textual.keys import _character_to_key
from textual.pilot import Pilot
from textual.widgets import Input, Static

import cockpit
from cockpit import key_queue
from cockpit.screens import chat_targets
from cockpit.screens.chat import ChatScreen
from cockpit.screens.data import DataScreen
from cockpit.screens.help import HelpScreen
from cockpit.screens.row_browser import RowBrowserScreen
from cockpit.screens.runs import RunsScreen
from cockpit.state.chat_tree import ChatTree
from cockpit.widgets.confirm import LeaveDialog
from cockpit.widgets.export_dialog import ExportDialog
from cockpit.widgets.picker import Picker
from cockpit.widgets.prompt import Prompt
from engine.protocol.home import Home
from engine.protocol.messages import Message, Problem, Run, Set, Stop
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import LOW, run_app, until


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
        return isinstance(screen, kind) and [field.value for field in screen.query(Input)] == [text]

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
    "digit, key, text": Case("dashboard", ("2o/q/rows.jsonl", "enter"), told("open", Path("/q/rows.jsonl"))),
    "digits and back": Case("dashboard", ("23", "escape", "o/q.jsonl", "enter"), told("open", Path("/q.jsonl"))),
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
    "held keys": Case("runs", ("/", "x" * 60), on_screen(RunsScreen, lambda s: s.query_one(Input).value == "x" * 60)),
    "scroll what has just opened": Case("dashboard", ("w", "j" * 5, "q2"), on_screen(DataScreen, lambda screen: True)),
    "save a profile": Case(
        "dashboard", ("3", "ctrl+s", "-q"), lambda pilot, _: dialog_value(pilot).endswith(".yaml-q")
    ),
}  # fmt: skip


def dialog_value(pilot: Pilot[None]) -> str:
    return pilot.app.screen.query_one(Input).value if isinstance(pilot.app.screen, Prompt) else ""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The screens write to `SEEN` what they would ask their workers; looking for models is slow and finds none."""
    SEEN.clear()

    def record(name: str) -> Callable[..., Awaitable[None]]:
        async def write(screen: Any, argument: Any) -> None:
            SEEN.setdefault(name, []).append(argument)

        return write

    async def find(*_: Any) -> list[dict[str, Any]]:
        await asyncio.sleep(0.2)
        return []

    monkeypatch.setattr(RowBrowserScreen, "search", record("search"))
    monkeypatch.setattr(DataScreen, "_run_stages", record("_run_stages"))
    monkeypatch.setattr(DataScreen, "open", lambda screen, path: SEEN.setdefault("open", []).append(path))
    monkeypatch.setattr(chat_targets, "find_local_models", find)
    yield


FRESH = [name for name, case in CASES.items() if case.first == "dashboard" and str(case.keys[0])[0].isdigit()]
"""These open a screen for the first time, so each gets an app of its own. The others share one for each screen."""
REST = [
    [n for n in CASES if CASES[n].first == first and n not in FRESH] for first in ("data", "dashboard", "runs", "chat")
]


@pytest.mark.parametrize(
    "names", [*([name] for name in FRESH), *REST], ids=lambda names: CASES[names[0]].first + f" {names[0]}"
)
async def test_a_burst_arrives_where_it_was_typed_for(names: list[str], recorded: None, tmp_path: Path) -> None:
    first, engine = CASES[names[0]].first, FakeEngine(demo_run())
    engine.problems = dict.fromkeys(("service_open", "judgements"), Problem(code="service.ended", title="no services"))
    async with run_app(engine, LOW, first=first, home=Home(tmp_path)) as pilot:
        for name in names:
            case = CASES[name]
            case.prepare(pilot)
            type_ahead(pilot.app, *case.keys)
            await until(pilot, lambda case=case: case.expected(pilot, engine) or not pilot.app.is_running)
            assert pilot.app.is_running, name
            await start_over(pilot, engine, first)


async def start_over(pilot: Pilot[None], engine: FakeEngine, first: str) -> None:
    """Close all dialogs, go back to the screen `first`, and forget what was asked."""
    while len(pilot.app.screen_stack) > 1:
        pilot.app.workers.cancel_node(pilot.app.screen_stack[0])
        await pilot.app.pop_screen()
    await pilot.app.switch_mode(first)
    if isinstance(pilot.app.screen, ChatScreen):
        await pilot.app.screen.action_clear()
    await pilot.pause()
    engine.requests.clear()
    SEEN.clear()


async def test_what_is_typed_behind_the_key_that_leaves_is_dropped() -> None:
    async with run_app(FakeEngine(demo_run()), LOW) as pilot:
        type_ahead(pilot.app, "2q3/qj:", "enter")
        await until(pilot, lambda: not pilot.app.is_running)
    assert pilot.app.return_code == 0
    key = events.Key("j", "j")
    key._set_forwarded()
    await pilot.app.on_event(key)  # one that has come back from a widget when the last screen is gone


class SlowEngine(FakeEngine):
    """Describes no run before the test lets it."""

    def __init__(self, *runs: Run) -> None:
        super().__init__(*runs)
        self.gate = asyncio.Event()

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        if operation == "show":
            await self.gate.wait()
        return await super().request(operation, message, timeout)


@asynccontextmanager
async def slow_picker(tmp_path: Path, *typed: str) -> AsyncIterator[tuple[Pilot[None], SlowEngine]]:
    """The chat screen, where `typed` was typed behind the key of a dialog that needs an engine that is slow."""
    engine = SlowEngine(demo_run())
    async with run_app(engine, LOW, first="chat", home=Home(tmp_path)) as pilot:
        await pilot.press("escape")
        type_ahead(pilot.app, "ctrl+t", *typed)
        await pilot.pause(0.1)
        yield pilot, engine


async def test_keys_wait_for_a_slow_dialog(recorded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_queue, "PATIENCE", 60)
    async with slow_picker(tmp_path, "q4/") as (pilot, engine):
        assert isinstance(pilot.app.screen, ChatScreen)
        engine.gate.set()
        await until(pilot, lambda: dialog_holds(Picker, "q4/")(pilot, None))


async def test_esc_calls_off_a_slow_dialog_with_what_was_typed_for_it(
    recorded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_queue, "PATIENCE", 60)
    async with slow_picker(tmp_path, "qq", "escape", "4") as (pilot, engine):
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))
        engine.gate.set()
        await pilot.pause(0.3)
        assert isinstance(pilot.app.screen, RunsScreen)


async def test_ctrl_c_leaves_while_keys_wait(recorded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_queue, "PATIENCE", 60)
    async with slow_picker(tmp_path, "qq") as (pilot, _):
        assert pilot.app.is_running
        type_ahead(pilot.app, "ctrl+c")
        await until(pilot, lambda: isinstance(pilot.app.screen, LeaveDialog))
        type_ahead(pilot.app, "ctrl+c")
        await until(pilot, lambda: not pilot.app.is_running)


async def test_a_dialog_that_does_not_come_gives_the_keys_back(
    recorded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_queue, "PATIENCE", 0.3)
    async with slow_picker(tmp_path, "4/q") as (pilot, _):
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))
        await until(pilot, lambda: pilot.app.screen.query_one(Input).value == "q")


@pytest.mark.parametrize("key", ["h", "r"])
async def test_a_widget_that_hangs_or_is_removed_does_not_hold_the_keys(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_queue, "PATIENCE", 0.3)

    over = asyncio.Event()

    class Fragile(Static, can_focus=True):
        async def on_key(self, event: events.Key) -> None:
            if event.key == "h":
                await over.wait()
            elif event.key == "r":
                self.remove()

    async with run_app(FakeEngine(), LOW) as pilot:
        await pilot.app.screen.mount(widget := Fragile("x"))
        widget.focus()
        await until(pilot, lambda: pilot.app.focused is widget)
        type_ahead(pilot.app, key)
        await asyncio.sleep(0.1)
        pilot.app.screen.set_focus(None)
        type_ahead(pilot.app, "?")
        async with asyncio.timeout(2.0):  # the pilot would wait for the widget that hangs
            while not isinstance(pilot.app.screen, HelpScreen):
                await asyncio.sleep(0.02)
        over.set()


async def test_a_click_and_keys_keep_their_order() -> None:
    async with run_app(FakeEngine(demo_run()), LOW, first="runs") as pilot:
        type_ahead(pilot.app, "/ab")
        await until(pilot, lambda: pilot.app.screen.query_one(Input).value == "ab")
        field = pilot.app.screen.query_one(Input)
        at = field.content_region.offset
        mouse = {"widget": None, "x": at.x, "y": at.y, "delta_x": 0, "delta_y": 0, "button": 1}
        mouse |= {"shift": False, "meta": False, "ctrl": False, "screen_x": at.x, "screen_y": at.y}
        type_ahead(pilot.app, "c", events.MouseDown(**mouse), events.MouseUp(**mouse), "x")
        await until(pilot, lambda: field.value == "xabc")


def test_each_worker_that_opens_a_dialog_says_so() -> None:
    """Keys wait only for workers that are marked."""
    calls: dict[str, set[str]] = {}
    workers: dict[str, set[str]] = {}
    for file in Path(cockpit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and file.name != "engine_app.py":
                named = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
                calls.setdefault(node.name, set()).update(named)
                decorators = {word for each in node.decorator_list for word in ast.unparse(each).split("(")[:1]}
                if "work" in decorators:
                    workers.setdefault(f"{file.stem}.{node.name}", set()).update(named, decorators)
    opening = {"push_screen_wait"}
    while (
        more := {name for name, named in calls.items() if named & opening and not name.startswith("action")} - opening
    ):
        opening |= more
    found = {name for name, named in workers.items() if named & opening}
    assert len(found) > 15
    assert not {name for name in found if "opens_dialog" not in workers[name]}
