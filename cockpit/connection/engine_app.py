"""A Textual app that is attached to one engine or several: connections, reduced states, and requests. It knows no
screen.

Each engine has screens of its own. What a screen does with `state`, `client` or `ask` concerns the engine whose screen
it is, also after the user has gone to another engine's: a reply that is still being written goes on, and nothing is
asked of the wrong host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from textual._context import active_message_pump
from textual.app import ScreenStackError
from textual.dom import DOMNode, NoScreen
from textual.events import Event, InputEvent, MouseDown, MouseMove, Paste
from textual.filter import LineFilter, Monochrome
from textual.screen import Screen
from textual.worker import NoActiveWorker, get_current_worker

from cockpit import remote_names
from cockpit.connection.alerts import Alerts, find_news
from cockpit.connection.attachment import Attachment
from cockpit.connection.drafts import Drafts
from cockpit.connection.settings import Settings
from cockpit.control_filter import SHOW_CONTROLS
from cockpit.fault_guard import FaultTolerantApp, guard_handlers, guard_lists, is_on_removed
from cockpit.key_queue import KeyQueue
from cockpit.language.translate import tr, tr_engine
from cockpit.looks import choose_filters, has_colour
from cockpit.state.app_state import AppState, reduce, select_run
from engine.protocol.console import GuardedConsole
from engine.protocol.first_look import find_run, has_runs
from engine.protocol.home import Home
from engine.protocol.messages import Message, Problem, ProblemError, Run, RunChanged, Snapshot

if TYPE_CHECKING:
    from engine.protocol.async_client import AsyncClient

Answer = TypeVar("Answer")

SILENCE = 2.5
"""Seconds without any message (telemetry comes every second) after which the engine counts as lost."""
RETRY = 3.0
"""Seconds between attempts to start an engine of this host that does not start."""
THREADS = 6
"""Threads for what is not about a host."""
READING = frozenset({"hello", "attach", "runs", "show", "series", "log", "telemetry", "judgements"})
"""Operations that change nothing."""
SERVING = frozenset({"service_open", "service_ask", "service_cancel", "service_close"})
"""Operations on services, which change no run. `--readonly` allows these and `READING`."""


async def connect(home: Home) -> AsyncClient:
    """Connect to the engine of `home`. Imports late: ZeroMQ's asyncio side takes 80 ms that the first paint need not
    wait for."""
    from engine.protocol.async_client import AsyncClient

    return await AsyncClient.connect(home)


class EngineApp(FaultTolerantApp):
    """Attaches to the engine of `home`, or starts it, and keeps `state` up to date; the same with other `engines`
    instead.

    Subclasses show each message (`show_message`) and a run (`open_run`), and say which engine a screen is of
    (`find_owner`).
    """

    def __init__(
        self,
        home: Home,
        *,
        readonly: bool,
        selected: str | None,
        connect: Callable[[Home], Any],
        engines: Sequence[Attachment] = (),
    ) -> None:
        guard_handlers()
        guard_lists()
        super().__init__()
        self.error_console = GuardedConsole(stderr=True)  # a traceback shows variables
        self.home, self.readonly = home, readonly
        """`home` is this host's, where the user's own profiles and conversations are."""
        self.engines = list(engines) or [Attachment(partial(connect, home), selected=selected)]
        if not engines:
            self._look_early(self.engines[0])
        self.settings = Settings(home)
        self.no_color = not has_colour(os.environ)
        self._looks = [
            *choose_filters(
                os.environ,
                self.console.color_system,
                self.settings.read_early("ascii").lower(),
                lambda: self.screen.background_colors[1].rgb,
            ),
            SHOW_CONTROLS,
        ]
        self.settings.failed = lambda reason: self.notify(reason, title=tr("Settings"), severity="warning", timeout=8)
        self.drafts = Drafts(home, lambda seconds, call: self.set_timer(seconds, call))
        self.drafts.failed = self._report_drafts
        self.alerts = Alerts(self.settings)
        self.waiting: list[tuple[str, str]] = []
        """Commands of this app that have not been taken yet: run and name."""
        self.keys = KeyQueue(self, self._deliver)
        self._owners: WeakKeyDictionary[Screen[Any], Attachment] = WeakKeyDictionary()

    def _look_early(self, engine: Attachment) -> None:
        """Take what the home tells by itself: the first paint shows it, and does not wait for the engine."""
        new = not has_runs(self.home)
        early = None if new else find_run(self.home, engine.state.requested)
        engine.state = replace(engine.state, early=early, new=new)

    @property
    def engine(self) -> Attachment:
        """The engine of the screen that asks; for the app itself, of the screen that is shown."""
        if len(self.engines) == 1:
            return self.engines[0]
        node = active_message_pump.get(None)
        if node is self:  # it is in workers, too
            with contextlib.suppress(NoActiveWorker):
                node = get_current_worker().node
        for asks in (node, self):
            with contextlib.suppress(NoScreen, ScreenStackError):
                screen = asks.screen if isinstance(asks, DOMNode) else self.screen
                if owner := self._owners.get(screen) or self.find_owner(screen):
                    self._owners[screen] = owner
                    return owner
        return self.engines[0]  # there are no screens: the app starts or ends

    @property
    def state(self) -> AppState:
        return self.engine.state

    @property
    def client(self) -> AsyncClient | None:
        return self.engine.client

    @property
    def fault_log(self) -> Path:
        return self.home.app_log

    def publish(self, body: object) -> None:
        """Show what `body` changed in `state`."""
        self.show_message(self.engine, body)

    def show_message(self, engine: Attachment, body: object) -> None:
        """Show what `body` changed in the engine's state."""
        raise NotImplementedError

    def find_owner(self, screen: Screen[Any]) -> Attachment | None:
        """The engine that the screen is of; None before it is shown and after it was removed."""
        raise NotImplementedError

    async def open_run(self, run: str) -> None:
        """Go to the screen of this run."""
        raise NotImplementedError

    async def action_go(self, name: str) -> None:
        """Show the screen of this name."""
        raise NotImplementedError

    async def open_profile(self, path: Path) -> None:
        """Go to the screen of profiles, with this file."""
        raise NotImplementedError

    async def go_to_host(self, at: int) -> None:
        """Show this screen of the engine with this index."""
        raise NotImplementedError

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*(each for each in super().get_line_filters() if not isinstance(each, Monochrome)), *self._looks]

    def notify(self, message: str, *, markup: bool = False, **options: Any) -> None:
        """Notifications name runs, files and errors, so their text is never markup. There are none while the app is
        leaving."""
        if self.is_running:
            super().notify(message, markup=False, **options)

    async def on_event(self, event: Event) -> None:
        if isinstance(event, (InputEvent, Paste)) and not self.is_running:
            return  # leaving: there may be no screen any more that it could go to
        if self.keys.takes(event):
            self.keys.put(event)
        else:
            await self._deliver(event)

    async def _deliver(self, event: Event) -> None:
        """Have Textual handle an event. It has no place for a pointer on what was removed since the last layout."""
        if not isinstance(event, (MouseDown, MouseMove)) or not is_on_removed(self.screen, event):
            await super().on_event(event)

    async def push_screen_wait(self, screen: Screen[Answer], *, mode: str | None = None) -> Answer:  # type: ignore[override]
        with self.keys.awaiting(screen):
            return await super().push_screen_wait(screen, mode=mode)

    def start_following(self) -> None:
        """Attach in the background and watch that the engines keep sending."""
        if len(self.engines) > 1:  # threads that wait for hosts must not keep others waiting
            executor = ThreadPoolExecutor(THREADS + 2 * len(self.engines))
            asyncio.get_running_loop().set_default_executor(executor)
        for engine in self.engines:
            self.run_worker(self._follow(engine), name="engine", exit_on_error=True)
        self.set_interval(1.0, self._watch)

    def _report_drafts(self, reason: str) -> None:
        self.notify(
            tr("{reason}\n→ save what you change with ctrl+s", reason=reason),
            title=tr("Drafts cannot be kept"),
            severity="warning",
        )

    async def on_unmount(self) -> None:
        self.drafts.flush()
        self.alerts.close()
        await asyncio.gather(*(engine.close() for engine in self.engines))

    async def _follow(self, engine: Attachment) -> None:
        """Attach and take in what the engine publishes for as long as the app lives; restart an engine that died."""
        while True:
            try:
                if engine.client is None:
                    engine.client = await engine.connect()
                    if warning := engine.client.warning:
                        self.notify_problem(warning)
                async for body in engine.client.follow():
                    engine.last_message = time.monotonic()
                    if engine.state.connection == "lost" and not isinstance(body, Snapshot):
                        self._set_connection(engine, "attached")  # it was silent, or this app stood still, for a moment
                    try:
                        self._take(engine, body)
                    except Exception as error:  # noqa: BLE001 - a body that cannot be shown must not end the following
                        self.catch(error)
            except ProblemError as error:
                news = engine.is_news(error.problem)
                self._set_connection(engine, "lost", error.problem)
                if news:
                    self.notify(
                        tr_engine(str(error.problem)),
                        title=engine.name or tr("No engine"),
                        severity="error",
                        timeout=10,
                    )
                await engine.wait(RETRY)

    def take(self, body: object) -> None:
        """Reduce one message into the state and publish it."""
        self._take(self.engine, body)

    def _take(self, engine: Attachment, body: object) -> None:
        before, runs = engine.state.connection, engine.state.runs
        engine.state = reduce(engine.state, body)
        if isinstance(body, (RunChanged, Snapshot)) and self.is_running:
            self._tell(engine, runs, body)
        if engine.state.connection == "attached":
            engine.succeeded()
            if before == "lost":
                self.notify(tr("attached again"), title=engine.name or tr("Engine"))
        self.show_message(engine, body)

    def _tell(self, engine: Attachment, before: Mapping[str, Run], body: RunChanged | Snapshot) -> None:
        """Tell of a run that has completed, is in trouble or has begun, unless it is the one that is looked at."""
        for run in [body.run] if isinstance(body, RunChanged) else body.runs:
            news = find_news(before.get(run.id), run)
            if news is not None:
                self.alerts.tell(news)
                if not self.is_looked_at(engine, run.id):
                    self.notify(news.text, title=news.title, severity=news.severity, timeout=10)
        if engine is self.engines[0]:
            self.alerts.show(engine.state.runs, engine.state.selected)

    def is_looked_at(self, engine: Attachment, run: str) -> bool:
        """Whether the screen that is shown is about this run alone."""
        return False

    def select_run(self, run: str) -> None:
        """Show `run` on the dashboard, now or as soon as the engine reports it."""
        engine = self.engine
        engine.state = select_run(engine.state, run)

    def _set_connection(self, engine: Attachment, connection: str, problem: Problem | None = None) -> None:
        engine.state = replace(engine.state, connection=connection, problem=problem)
        self.show_message(engine, engine.state)

    def _watch(self) -> None:
        for engine in self.engines:
            if engine.state.connection == "attached" and time.monotonic() - engine.last_message > SILENCE:
                self._set_connection(engine, "lost")

    async def ask(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        """Request `operation`. Returns the engine's reply, or None after notifying the user of what went wrong."""
        try:
            if self.readonly and operation not in READING | SERVING:
                raise ProblemError(
                    Problem(
                        code="app.read_only",
                        title=tr("This cockpit is read-only"),
                        hint=tr("start it without --readonly"),
                    )
                )
            if self.client is None:
                raise ProblemError(
                    Problem(
                        code="engine.not_attached",
                        title=tr("Not attached yet"),
                        hint=tr("wait until the engine is there"),
                    )
                )
            reply = await self.client.request(operation, message, timeout)
            # While the app exits, its screens are being removed: nobody is there to show the reply.
            return reply if self.is_running else None
        except ProblemError as error:
            self.notify_problem(error.problem)
            return None

    def notify_problem(self, problem: Problem) -> None:
        """Show a problem's title, cause and hint as a notification."""
        hint = remote_names.name_in(tr_engine(problem.hint), self.engine.command)
        text = "\n".join(part for part in (tr_engine(problem.cause), hint and f"→ {hint}") if part)
        self.notify(text or " ", title=tr_engine(problem.title), severity="error", timeout=8)
