"""A Textual app that is attached to an engine: one connection, the reduced state, and requests. It knows no screen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from textual.events import Event, InputEvent, Paste
from textual.filter import LineFilter
from textual.screen import Screen

from cockpit.connection.drafts import Drafts
from cockpit.control_filter import SHOW_CONTROLS
from cockpit.fault_guard import FaultTolerantApp, guard_handlers
from cockpit.key_queue import KeyQueue
from cockpit.state.app_state import AppState, reduce, select_run
from engine.protocol.console import GuardedConsole
from engine.protocol.home import Home
from engine.protocol.messages import Message, Problem, ProblemError

if TYPE_CHECKING:
    from engine.protocol.async_client import AsyncClient

Answer = TypeVar("Answer")

SILENCE = 2.5
"""Seconds without any message (telemetry comes every second) after which the engine counts as lost."""
RETRY = 3.0
"""Seconds between attempts to start an engine that does not start."""
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
    """Attaches to the engine of `home`, or starts it, and keeps `state` up to date.

    Subclasses show each message (`publish`) and a run (`open_run`).
    """

    def __init__(self, home: Home, *, readonly: bool, selected: str | None, connect: Callable[[Home], Any]) -> None:
        guard_handlers()
        super().__init__()
        self.error_console = GuardedConsole(stderr=True)  # a traceback shows variables
        self.home, self.readonly = home, readonly
        self.state = AppState(requested=selected)
        self.client: AsyncClient | None = None
        self.drafts = Drafts(home, lambda seconds, call: self.set_timer(seconds, call))
        self.drafts.failed = self._report_drafts
        self.keys = KeyQueue(self, super().on_event)
        self._connect = connect
        self._last_message = time.monotonic()

    @property
    def fault_log(self) -> Path:
        return self.home.app_log

    def publish(self, body: object) -> None:
        """Show what `body` changed in `state`."""
        raise NotImplementedError

    async def open_run(self, run: str) -> None:
        """Go to the screen of this run."""
        raise NotImplementedError

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), SHOW_CONTROLS]

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
            await super().on_event(event)

    async def push_screen_wait(self, screen: Screen[Answer], *, mode: str | None = None) -> Answer:  # type: ignore[override]
        with self.keys.awaiting(screen):
            return await super().push_screen_wait(screen, mode=mode)

    def start_following(self) -> None:
        """Attach in the background and watch that the engine keeps sending."""
        self.run_worker(self._follow(), name="engine", exit_on_error=True)
        self.set_interval(1.0, self._watch)

    def _report_drafts(self, reason: str) -> None:
        self.notify(f"{reason}\n→ save what you change with ctrl+s", title="Drafts cannot be kept", severity="warning")

    async def on_unmount(self) -> None:
        self.drafts.flush()
        if self.client is not None:
            await self.client.close()

    async def _follow(self) -> None:
        """Attach and take in what the engine publishes for as long as the app lives; restart an engine that died."""
        while True:
            try:
                if self.client is None:
                    self.client = await self._connect(self.home)
                    if warning := self.client.warning:
                        self.notify_problem(warning)
                async for body in self.client.follow():
                    self._last_message = time.monotonic()
                    try:
                        self.take(body)
                    except Exception as error:  # noqa: BLE001 - a body that cannot be shown must not end the following
                        self.catch(error)
            except ProblemError as error:
                self._set_connection("lost", error.problem)
                self.notify(str(error.problem), title="No engine", severity="error", timeout=10)
                await asyncio.sleep(RETRY)

    def take(self, body: object) -> None:
        """Reduce one message into the state and publish it."""
        before = self.state.connection
        self.state = reduce(self.state, body)
        if before == "lost" and self.state.connection == "attached":
            self.notify("attached again", title="Engine")
        self.publish(body)

    def select_run(self, run: str) -> None:
        """Show `run` on the dashboard, now or as soon as the engine reports it."""
        self.state = select_run(self.state, run)

    def _set_connection(self, connection: str, problem: Problem | None = None) -> None:
        self.state = replace(self.state, connection=connection, problem=problem)
        self.publish(self.state)

    def _watch(self) -> None:
        if self.state.connection == "attached" and time.monotonic() - self._last_message > SILENCE:
            self._set_connection("lost")

    async def ask(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        """Request `operation`. Returns the engine's reply, or None after notifying the user of what went wrong."""
        try:
            if self.readonly and operation not in READING | SERVING:
                raise ProblemError(
                    Problem(code="app.read_only", title="This cockpit is read-only", hint="start it without --readonly")
                )
            if self.client is None:
                raise ProblemError(
                    Problem(code="engine.not_attached", title="Not attached yet", hint="wait until the engine is there")
                )
            reply = await self.client.request(operation, message, timeout)
            # While the app exits, its screens are being removed: nobody is there to show the reply.
            return reply if self.is_running else None
        except ProblemError as error:
            self.notify_problem(error.problem)
            return None

    def notify_problem(self, problem: Problem) -> None:
        """Show a problem's title, cause and hint as a notification."""
        text = "\n".join(part for part in (problem.cause, problem.hint and f"→ {problem.hint}") if part)
        self.notify(text or " ", title=problem.title, severity="error", timeout=8)
