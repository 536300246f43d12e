"""The app: screens on keys, one connection to the engine, events routed to state and screens. Nothing else."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual._compositor import ChopsUpdate
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from cockpit.screens import SCREENS
from cockpit.screens.base import CockpitScreen
from cockpit.spans import SpansUpdate
from cockpit.state import State, reduce, select
from cockpit.theme import COCKPIT
from cockpit.widgets.topbar import TopBar
from engine.protocol.home import Home
from engine.protocol.messages import Message, Problem, ProblemError

if TYPE_CHECKING:
    from engine.protocol.async_client import AsyncClient

SILENCE = 2.5
"""Seconds without a word (telemetry comes every second) after which the engine counts as lost."""
HANG_UP = 1.0
"""Seconds that leaving may take once the terminal is gone."""
RETRY = 3.0
"""Seconds between attempts to bring up an engine that does not start."""
READING = frozenset({"hello", "attach", "runs", "show", "series", "log", "telemetry", "judgements"})
SERVING = frozenset({"service_open", "service_ask", "service_cancel", "service_close"})
"""Operations that `--readonly` allows: those that look, and services, which change no run."""


def load_screen(reference: str) -> Screen[Any]:
    """The screen that "module:Class" names; its module is imported here, on first sight."""
    module, name = reference.split(":")
    screen: Screen[Any] = getattr(importlib.import_module(module), name)()
    return screen


async def connect(home: Home) -> AsyncClient:
    """The engine's client, imported late: ZeroMQ's asyncio side costs 80 ms that the first paint need not wait for."""
    from engine.protocol.async_client import AsyncClient

    return await AsyncClient.connect(home)


class CockpitApp(App[None]):
    """Attach to the engine of `home`, or start it. Leaving the app only detaches: it sends nothing to any job."""

    TITLE = "cockpit"
    CSS_PATH = "cockpit.tcss"
    DEFAULT_MODE = "dashboard"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        name: partial(load_screen, reference) for name, (_, reference) in SCREENS.items()
    }
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (150, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(key), f"go('{name}')", title, show=False)
            for key, (name, (title, _)) in enumerate(SCREENS.items(), start=1)
        ),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("colon", "command_palette", "Menu", key_display=":"),
        Binding("q", "detach", "Detach"),
        Binding("ctrl+c", "detach", "Detach", show=False, priority=True),
        Binding("ctrl+q", "detach", "Detach", show=False, priority=True),
        Binding("escape", "back", "Back", show=False),
    ]

    def __init__(
        self,
        home: Home,
        *,
        readonly: bool = False,
        selected: str | None = None,
        first: str = "dashboard",
        connect: Callable[[Home], Any] = connect,
    ) -> None:
        """`selected` is the run to show, `first` the screen to open on. `connect` is awaited for an `AsyncClient`."""
        super().__init__()
        self.home, self.readonly = home, readonly
        self.state = State(wanted=selected)
        self.client: AsyncClient | None = None
        self._connect = connect
        self._first = first
        self._heard = time.monotonic()
        self._visited: list[str] = []
        self.register_theme(COCKPIT)
        self.theme = "cockpit"

    async def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.exit)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._first != self.current_mode:
            await self.action_go(self._first)
        # The first paint does not wait for an engine.
        self.set_timer(0.01, self._start)

    def _start(self) -> None:
        self.run_worker(self._follow(), name="engine", exit_on_error=True)
        self.set_interval(1.0, self._watch)

    async def on_unmount(self) -> None:
        if self.client is not None:
            await self.client.close()

    def _hang_up(self) -> None:
        """The connection dropped. Unhandled, SIGHUP kills the app without clean-up; ignored, it spins on a dead terminal.

        Textual's writer thread may have died of its first failed write, and then Textual waits for it for ever: so what is
        still painted goes nowhere, and the process ends even when Textual does not.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        self.exit()
        last_resort = threading.Timer(HANG_UP, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        if isinstance(renderable, ChopsUpdate):
            renderable = SpansUpdate(renderable.chops, renderable.spans, renderable.chop_ends)
        super()._display(screen, renderable)

    # ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        """Attach and take in what is published, for as long as the app lives; an engine that died is started again."""
        while True:
            try:
                if self.client is None:
                    self.client = await self._connect(self.home)
                async for body in self.client.follow():
                    self._heard = time.monotonic()
                    self.take(body)
            except ProblemError as error:
                self._set(connection="lost", problem=error.problem)
                self.notify(str(error.problem), title="No engine", severity="error", timeout=10, markup=False)
                await asyncio.sleep(RETRY)

    def take(self, body: object) -> None:
        """Reduce one body into the state and tell every mounted screen."""
        before = self.state.connection
        self.state = reduce(self.state, body)
        if before == "lost" and self.state.connection == "attached":
            self.notify("attached again", title="Engine")
        self._tell(body)

    def _tell(self, body: object) -> None:
        if not self.is_running:  # leaving: the screens are being taken down
            return
        for stack in self._screen_stacks.values():
            for screen in stack:
                if isinstance(screen, CockpitScreen) and screen.is_mounted:
                    screen.receive(self.state, body)
        for bar in self.screen.query(TopBar):
            bar.show(self.state)

    def _set(self, connection: str, problem: Problem | None = None) -> None:
        self.state = replace(self.state, connection=connection, problem=problem)
        self._tell(self.state)

    def _watch(self) -> None:
        if self.state.connection == "attached" and time.monotonic() - self._heard > SILENCE:
            self._set("lost")

    async def ask(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        """The engine's reply, or None after telling the user what went wrong."""
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
            # While leaving, the screens are taken down: nobody is there to show the reply.
            return reply if self.is_running else None
        except ProblemError as error:
            problem = error.problem
            text = "\n".join(part for part in (problem.cause, problem.hint and f"→ {problem.hint}") if part)
            self.notify(text or " ", title=problem.title, severity="error", timeout=8, markup=False)
            return None

    # ── going about ───────────────────────────────────────────────────────────────────────────────────────────────

    async def open_run(self, run: str) -> None:
        """The dashboard of this run, which may be one that the engine has not told of yet."""
        self.state = select(self.state, run)
        self._tell(self.state)
        await self.action_go("dashboard")

    async def action_go(self, name: str) -> None:
        if name == self.current_mode or len(self.screen_stack) > 1:
            return
        self._visited.append(self.current_mode)
        await self.switch_mode(name)
        for bar in self.screen.query(TopBar):
            bar.show(self.state)

    async def action_back(self) -> None:
        if len(self.screen_stack) > 1:
            self.pop_screen()
        elif self._visited:
            await self.switch_mode(self._visited.pop())

    def action_detach(self) -> None:
        """ctrl+c copies when text is selected, as it does everywhere; otherwise leave. The runs go on."""
        selected = getattr(self.focused, "selected_text", "") or self.screen.get_selected_text()
        if selected:
            self.copy_to_clipboard(selected)
            return
        self.exit()

    def action_help(self) -> None:
        from cockpit.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.screen))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette offers: the screens, what the present screen's keys do, and the app's own."""
        for key, (name, (title, _)) in enumerate(SCREENS.items(), start=1):
            yield SystemCommand(title, f"screen {key}", partial(self.action_go, name))
        for active in screen.active_bindings.values():
            binding = active.binding
            own = active.node is screen and isinstance(screen, CockpitScreen) and "." not in binding.action
            if own and active.enabled and binding.description:
                command = partial(self.run_action, binding.action, default_namespace=screen)
                yield SystemCommand(binding.description, f"key {self.get_key_display(binding)}", command)
        yield SystemCommand("Theme", "choose the colours", self.action_change_theme)
        yield SystemCommand("Help", "keys of this screen", self.action_help)
        yield SystemCommand("Detach", "leave the app; the runs go on", self.action_detach)


def run(home: Home, readonly: bool = False, select: str | None = None, screen: str = "dashboard") -> None:
    """Open the app and return when the user has detached."""
    app = CockpitApp(home, readonly=readonly, selected=select, first=screen)
    app.run()
    live = [run.id for run in app.state.runs.values() if run.state in ("queued", "preparing", "running", "paused")]
    if live:
        goes = "goes" if len(live) == 1 else "go"
        print(f"Detached: {', '.join(live)} {goes} on. Come back with `cockpit`, stop with `cockpit stop {live[0]}`.")
