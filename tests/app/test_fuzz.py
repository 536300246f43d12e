"""Random keys, clicks, resizes and events of the engine over all screens: no exception, and no draft is lost.

COCKPIT_FUZZ is the number of actions (20000 takes some minutes), COCKPIT_FUZZ_SEED the seed of a run to repeat.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.keys import _character_to_key

from cockpit.app import CockpitApp
from cockpit.connection.attachment import Attachment
from cockpit.screens import chat_targets, profile, save
from cockpit.screens.chat import ChatScreen
from cockpit.screens.doctor import DoctorScreen
from cockpit.screens.profile import ProfileScreen
from cockpit.widgets.chat_input import ChatInput
from engine.protocol import states
from engine.protocol.home import Home
from engine.protocol.messages import (
    Closing,
    Points,
    Problem,
    ProblemError,
    Ranks,
    RunChanged,
    RunRemoved,
    Service,
    ServiceChanged,
    ServiceEvent,
    Snapshot,
    Told,
)
from tests.app.fake import RANKS, bad_batch, demo_run, entries, ledger, telemetry
from tests.app.screen import run_app
from tests.app.services import FakeServices
from tests.app.test_grids import make_grid
from tests.hostile import EVIL

ACTIONS = int(os.environ.get("COCKPIT_FUZZ", "240"))
SEED = int(os.environ.get("COCKPIT_FUZZ_SEED", "0")) or random.randrange(1 << 30)
FIRST = ("dashboard", "data", "profile", "runs", "chat")
SESSION = max(48, ACTIONS // 40)
"""Actions in one app. The next one has to find the drafts of the last."""
BURST = 12
"""Actions that are posted before the app has handled them."""
NAMED = [
    "enter", "escape", "tab", "shift+tab", "up", "down", "left", "right", "home", "end", "pageup", "pagedown", "space",
    "backspace", "delete", "f1", "f3", "ctrl+s", "ctrl+l", "ctrl+g", "ctrl+t", "ctrl+b", "ctrl+n", "ctrl+o", "ctrl+x",
    "ctrl+c", "ctrl+p", "ctrl+z", "ctrl+u", "ctrl+a", "alt+1", "alt+2", "alt+3", "alt+4", "alt+5", "alt+6",
]  # fmt: skip
CHARACTERS = "123456" + "abcdefghijklmnoprstuvwxyzACDEFGHIJKLMNPSXZ/[]<>=+-#?: 抽取"
TEXTS = ["words", EVIL, "[/x]", "抽取三元组 " * 9, "# heading\n\n- a\n- b", '[{"a": 1}]', "<think>so</think>yes", ""]
SIZES = [(20, 8), (34, 24), (60, 18), (80, 24), (100, 30), (120, 40), (200, 50)]


LEAVING = ("detach", "interrupt", "language")
"""Actions that end the app."""


TALK = (("alt+5", "ctrl+t"), (*"m-1", "enter"), (*"why", "enter"), ("escape",))
TOURS: dict[str, tuple[tuple[str, ...], ...]] = {
    "BadBatchDialog": (("alt+1",), ("b",)),
    "ColumnsDialog": (("alt+4", "c"),),
    "CompareScreen": (("alt+4",), ("up", "up", "space", "space", "C")),
    "DeviceHistoryScreen": (("alt+1", "D"),),
    "DraftDialog": (("alt+2", "o"), (*"rows.jsonl", "enter"), ("T",)),
    "EvaluationsScreen": (("alt+1", "E"), ("enter",)),
    "ExportDialog": (("alt+1", "X"), ("enter",)),
    "GridDialog": (("alt+4", "g"),),
    "HistoryDialog": (("alt+1", "w"),),
    "HostsDialog": (("alt+1", "H"),),
    "LogViewer": (("alt+1", "L"),),
    "MetricsScreen": (("alt+4", "m"),),
    "RatingDialog": (*TALK, ("s",)),
    "SamplesDialog": (("alt+1", "v"),),
    "SourcesDialog": (("alt+3",), ("tab", "slash", *"data.train", "enter"), ("enter",)),
    "TokenDialog": (*TALK, ("p",)),
    "WhyDialog": (("alt+1", "d"),),
    "WorstRowsScreen": (("alt+2", "w"),),
}
"""Screen that random keys seldom open -> the keys that open it, in bursts."""


class Breaking(FakeServices):
    """An engine whose connection breaks when an exception is said."""

    async def follow(self) -> AsyncIterator[Any]:
        async for body in super().follow():
            if isinstance(body, Exception):
                raise body
            yield body


class Fuzz:
    """One app after the other in one home, until all actions are done."""

    def __init__(self, home: Home) -> None:
        self.random = random.Random(SEED)
        self.home, self.left, self.apps = home, ACTIONS, 0
        self.trail: list[str] = []
        self.seen: set[str] = set()
        """The screens that were on top."""

    async def run(self) -> None:
        while self.left > 0:
            self.apps += 1
            tour = list(TOURS)[(SEED + self.apps) % len(TOURS)]
            engines = [self._make_engine() for _ in range(2 if tour == "HostsDialog" else 1)]
            hosts = [Attachment(partial(each.connect, self.home), f"host-{at}") for at, each in enumerate(engines)]
            first = FIRST[self.apps % len(FIRST)]
            self.trail.append(f"--- {first}")
            end = self.left - SESSION
            options: dict[str, Any] = {"first": first, "engines": hosts if len(engines) > 1 else ()}
            async with run_app(engines[0], self.random.choice(SIZES), self.home, **options) as pilot:
                app = pilot.app
                assert isinstance(app, CockpitApp)
                self.seen.add(app.current_mode)
                await self._tour(app, engines, tour)
                while app.is_running and self.left > max(0, end):
                    for _ in range(BURST):
                        self.left -= 1
                        self._act(app, self.random.choice(engines))
                    await self._settle(app)
                    self._check(app)

    async def _tour(self, app: CockpitApp, engines: list[Breaking], tour: str) -> None:
        """Open a screen on which the random keys begin."""
        for engine in engines:
            for at in range(2):
                engine.runs[f"run-{at}"] = demo_run(id=f"run-{at}", state="paused", name=engine.text)
                engine.say(RunChanged(run=engine.runs[f"run-{at}"]))
        for keys in TOURS[tour]:
            for engine in engines:  # anew: what a run that is opened has told replaces it
                engine.say(*(Told(run=run, entry=bad_batch()) for run in engine.runs))
            await asyncio.sleep(0.05)
            for key in keys:
                self._type(app, key) if len(key) == 1 else self._press(app, key)
            await self._settle(app)
            await asyncio.sleep(0.2)  # for what is asked of the engine
        await self._settle(app)
        self._check(app)

    def _make_engine(self) -> Breaking:
        text = self.random.choice(TEXTS)
        return Breaking(*self._runs(), text=text, devices=self.random.choice((0, 1, 8)))

    def _runs(self) -> list[Any]:
        each = [self.random.choice(states.STATES) for _ in range(self.random.randrange(4))]
        return [
            demo_run(
                id=f"run-{at}", name=self.random.choice(TEXTS), state=state, group=self.random.choice(("", "a", EVIL))
            )
            for at, state in enumerate(each)
        ]

    def _act(self, app: CockpitApp, engine: Breaking) -> None:
        kind = self.random.random()
        width, height = app.size
        if kind < 0.2:
            self._press(app, self.random.choice(NAMED))
        elif kind < 0.45:
            self._press_own(app)
        elif kind < 0.8:
            self._type(app, self.random.choice(CHARACTERS))
        elif kind < 0.88:
            y = self.random.choice((0, height - 1, self.random.randrange(height)))
            self._point(app, self.random.randrange(width), y, turn=self.random.choice((0, 0, 0, 1, -1)))
        elif kind < 0.89:
            self.trail.append("paste")
            app.post_message(events.Paste(self.random.choice(TEXTS)))
        elif kind < 0.92:
            self._resize(app, *self.random.choice(SIZES))
        else:
            self._event(engine)

    def _press(self, app: App[Any], key: str, character: str | None = None) -> None:
        self.trail.append(key)
        app.post_message(events.Key(key, character))

    def _type(self, app: App[Any], character: str) -> None:
        self._press(app, character if character.isalnum() else _character_to_key(character), character)

    def _press_own(self, app: App[Any]) -> None:
        """Press a key that means something where the app is now: so every dialog comes up sooner or later."""
        keys: dict[Any, list[str]] = {}
        for key, active in app.screen.active_bindings.items():
            if active.binding.action not in LEAVING:
                keys.setdefault(active.node, []).append(key)
        own = self.random.choice([keys[node] for node in keys if node is not app] or [["escape"]])
        self._press(app, self.random.choice(own))

    def _point(self, app: App[Any], x: int, y: int, turn: int) -> None:
        """Click there, or turn the wheel."""
        self.trail.append(f"{'wheel' if turn else 'click'} {x},{y}")
        where: dict[str, Any] = {"x": x, "y": y, "delta_x": 0, "delta_y": turn, "button": 1, "shift": False}
        where |= {"meta": False, "ctrl": False, "screen_x": x, "screen_y": y}
        wheel = (events.MouseScrollDown if turn > 0 else events.MouseScrollUp,)
        for event in wheel if turn else (events.MouseMove, events.MouseDown, events.MouseUp):
            app.post_message(event(None, **where))

    def _resize(self, app: App[Any], width: int, height: int) -> None:
        from textual.geometry import Size

        self.trail.append(f"size {width}x{height}")
        assert app._driver is not None
        app._driver._size = Size(width, height)  # type: ignore[attr-defined]
        app.post_message(events.Resize(Size(width, height), Size(width, height)))

    def _event(self, engine: Breaking) -> None:
        self.trail.append("event")
        name = f"run-{self.random.randrange(5)}"
        text = self.random.choice(TEXTS)
        problem = Problem(code="x", title=text, cause=text, hint=text) if self.random.random() < 0.3 else None
        state = self.random.choice(states.STATES)
        step = self.random.randrange(60)
        run = demo_run(id=name, name=text, state=state, reason=text, problem=problem, step=step, phase=text)
        run.group, run.position = self.random.choice(("", "a", text)), int(state == "queued") * (step + 1)
        service = Service(id="service-1", kind="chat", state=self.random.choice(("ready", "busy", "ended")))
        event = self.random.randrange(11)
        if event == 0 and name in engine.runs:
            engine.runs.pop(name)
            engine.say(RunRemoved(run=name))
        elif event == 1 and name in engine.runs:
            values = {"train/loss": [(step, self.random.random())], "eval/loss": [(step, 1.0)], text: [(step, 1.0)]}
            engine.say(Points(run=name, attempt=self.random.randrange(1, 3), values=values))
        elif event == 2:
            engine.say(telemetry(self.random.choice((0, 1, 8))))
        elif event == 3:
            engine.say(ServiceChanged(service=service))
        elif event == 4 and name in engine.runs:
            told = [bad_batch(), ledger(step, text, text, 1), *entries()[1:]]
            engine.say(Told(run=name, entry=self.random.choice(told)), Ranks(run=name, ranks=RANKS))
        elif event == 5:
            engine.say(ServiceEvent(service="service-1", request="gone", kind="progress", data={"text": text}))
        elif event == 6:
            engine.say(Snapshot(session=text, seq=step, runs=list(engine.runs.values())))
        elif event == 7 and self.random.random() < 0.2:
            broken = ProblemError(Problem(code="engine.gone", title=text, cause=text))
            engine.say(Closing(), broken)
        else:
            engine.runs[name] = run
            engine.say(RunChanged(run=run))

    async def _settle(self, app: CockpitApp) -> None:
        for _ in range(600):
            await asyncio.sleep(0.005)
            if not app.is_running or app.keys.idle:
                return
        raise AssertionError(f"keys were not handled within 3 s: {self.trail[-40:]}")

    def _check(self, app: CockpitApp) -> None:
        assert app.faults == 0, f"seed {SEED}, {len(self.trail)} actions: {self.trail[-60:]}"
        if not app.is_running:
            return
        self.seen |= {app.current_mode, type(app.screen).__name__}
        app.drafts.flush()
        kept = {(each["kind"], each["key"]): each for each in map(_read, self.home.drafts.glob("*.json"))}
        for stack in app._screen_stacks.values():
            for screen in stack:
                if isinstance(screen, ProfileScreen) and screen.is_mounted:
                    for path, text in screen.drafts.items():
                        assert kept["profile", str(path)]["text"] == text, (SEED, self.trail[-60:])
                if isinstance(screen, ChatScreen) and screen.is_mounted and screen.query(ChatInput):
                    if text := screen.query_one(ChatInput).text:
                        assert kept["prompt", ""]["text"] == text, (SEED, self.trail[-60:])
                    if screen.chat.turns and screen.chat is not screen._saved:
                        turns = json.loads(kept["chat", ""]["document"])["turns"]
                        assert len(turns) == len(screen.chat.turns), (SEED, self.trail[-60:])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    return content


def only_below(folder: Path, write: Callable[..., Any]) -> Callable[..., Any]:
    """A path that is typed at random may be anywhere."""

    def checked(path: Path, *arguments: Any) -> Any:
        if folder not in path.parents:
            raise OSError(13, "Permission denied", str(path))
        return write(path, *arguments)

    return checked


@pytest.mark.timeout(300 + ACTIONS)
async def test_random_actions_end_in_no_exception_and_no_lost_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path / "home")
    (home.root / "profiles").mkdir(parents=True)
    (home.root / "profiles" / "mine.yaml").write_text(
        "name: mine\nmodel: {base: smollm2-135m-instruct}\ndata: {train: [{source: rows.jsonl}]}\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    make_grid(home)
    monkeypatch.setattr(profile, "write_profile", only_below(tmp_path, profile.write_profile))
    monkeypatch.setattr(save, "write_private", only_below(tmp_path, save.write_private))
    monkeypatch.setattr(save, "make_private", only_below(tmp_path, save.make_private))

    async def no_doctor(screen: DoctorScreen, *arguments: str) -> dict[str, Any]:
        return {"checks": []}

    monkeypatch.setattr(DoctorScreen, "_ask_doctor", no_doctor)

    async def no_models(home: Home, link: Any = None) -> list[dict[str, Any]]:
        return []

    monkeypatch.setattr(chat_targets, "find_local_models", no_models)
    monkeypatch.setattr(App, "copy_to_clipboard", lambda app, text: None)
    fuzz = Fuzz(home)
    await fuzz.run()
    assert len(fuzz.trail) > ACTIONS and fuzz.seen >= set(FIRST)
