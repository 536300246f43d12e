"""The app: its screens, its keys and its commands. What it knows of the engine is in `connection.engine_app`."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from textual import work
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.app import SystemCommand
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.command import CommandPalette, Provider
from textual.screen import Screen
from textual.widgets import Input

from cockpit.connection.attachment import Attachment
from cockpit.connection.engine_app import connect
from cockpit.fault_guard import Fault, FaultPage
from cockpit.keymap import named
from cockpit.language.translate import tr
from cockpit.painted_app import PaintedApp
from cockpit.screens import SCREENS
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.widgets.confirm import LeaveDialog
from cockpit.widgets.top_bar import TopBar
from engine.protocol.home import Home

HANG_UP = 1.0
"""Seconds that the app may take to exit once its terminal is gone."""


def load_screen(reference: str) -> Screen[Any]:
    """Make the screen that "module:Class" names. Its module is imported here, when the screen is first opened."""
    module, name = reference.split(":")
    screen: Screen[Any] = getattr(importlib.import_module(module), name)()
    return screen


def load_finder() -> type[Provider]:
    """What `:` searches. Imported when it is first opened."""
    from cockpit.screens.finder import Finder

    return Finder


def forget_mac_characters() -> None:
    """Read Esc and a digit that arrive together as alt and that digit. Textual takes them for what the Option key
    types on some Macs, so that Esc and then 4, typed fast, would write `¢` into a text."""
    for sequence, meaning in list(ANSI_SEQUENCES_KEYS.items()):
        if len(sequence) == 2 and isinstance(meaning, str) and not meaning.isascii():
            cast(dict[str, Any], ANSI_SEQUENCES_KEYS).pop(sequence)


@named
class CockpitApp(PaintedApp):
    """Leaving the app only detaches: it sends nothing to any job."""

    TITLE = "cockpit"
    CSS_PATH = "cockpit.tcss"
    DEFAULT_MODE = "dashboard"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        name: partial(load_screen, reference) for name, (_, reference) in SCREENS.items()
    }
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (150, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high"), (50, "-tall")]
    COMMANDS: ClassVar[set[Any]] = {load_finder}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(key), f"go('{name}')", title, show=False)
            for key, (name, (title, _)) in enumerate(SCREENS.items(), start=1)
        ),
        *(
            Binding(f"alt+{key}", f"go('{name}')", title, show=False, priority=True)
            for key, name in enumerate(SCREENS, start=1)
            for title in (SCREENS[name][0],)
        ),
        Binding("f1", "help", "Help", show=False, priority=True),
        Binding("ctrl+p", "command_palette", "Menu", show=False, priority=True),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("colon", "command_palette", "Menu", key_display=":"),
        Binding("H", "hosts", "Hosts"),
        Binding("f2", "language", "Language", show=False, priority=True),
        Binding("f5", "repaint", "Repaint", show=False, priority=True),
        Binding("q", "detach", "Detach"),
        Binding("ctrl+c", "interrupt", "Stop, clear or detach", show=False, priority=True),
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
        engines: Sequence[Attachment] = (),
    ) -> None:
        """`selected` is the run to show, `first` the screen to open. `connect` is awaited for an `AsyncClient`, unless
        `engines` are given."""
        forget_mac_characters()
        super().__init__(home, readonly=readonly, selected=selected, connect=connect, engines=engines)
        for at in range(1, len(self.engines)):
            for name, make in self.MODES.items():
                self.add_mode(_mode_of(name, at), make)
        self._first = first
        self._visited: list[str] = []
        self._discarded: Screen[Any] | None = None
        """The last screen that could not be drawn. It is being removed, and fails until it is."""

    async def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.exit)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._first != self.current_mode:
            await self.action_go(self._first)
        driver = self._driver
        if (
            driver is not None
            and not self.is_headless
            and not self.is_web
            and sys.__stdout__
            and sys.__stdout__.isatty()
        ):
            self.alerts.write = driver.write
        if self.is_web:
            server = os.getppid()
            self.set_interval(2.0, lambda: self._hang_up() if os.getppid() != server else None)
        # The first paint does not wait for an engine.
        self.set_timer(0.01, self._begin)

    def _begin(self) -> None:
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        self.start_following()

    def _hang_up(self) -> None:
        """Exit after the terminal is gone. Without a handler SIGHUP kills the app before it can clean up; ignored, the
        app spins.

        Textual's writer thread may have died of its first failed write, and Textual then waits for it for ever. So what
        is still painted goes to /dev/null, and the process ends even when Textual does not.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        self.drafts.flush()
        self.exit()
        last_resort = threading.Timer(HANG_UP, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()

    def show_message(self, engine: Attachment, body: object) -> None:
        """Pass `body` to every mounted screen of this engine and update the top bar."""
        if not self.is_running:  # leaving: the screens are being removed
            return
        for mode, stack in list(self._screen_stacks.items()):
            if self.engines[_engine_of(mode)] is not engine:
                continue
            for screen in list(stack):
                if isinstance(screen, CockpitScreen) and screen.is_mounted:
                    with screen._context():  # what it starts now is this engine's, too
                        try:
                            screen.receive(engine.state, body)
                        except Exception as error:  # noqa: BLE001 - the other screens shall have it all the same
                            self.catch(error, screen)
        self._show_bar()

    def _show_bar(self) -> None:
        for bar in self.screen.query(TopBar):
            bar.show(self.state)

    def is_looked_at(self, engine: Attachment, run: str) -> bool:
        shown = self.screen_name == "dashboard" and len(self.screen_stack) == 1
        return shown and engine is self.engine and engine.state.selected == run

    def find_owner(self, screen: Screen[Any]) -> Attachment | None:
        mode = next((mode for mode, stack in self._screen_stacks.items() if screen in stack), None)
        return None if mode is None else self.engines[_engine_of(mode)]

    def _watch(self) -> None:
        super()._watch()
        if self.is_running:
            self._show_bar()  # seconds until the next attempt

    # ── navigation ────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_run(self, run: str) -> None:
        """Go to the dashboard of this run, which may be one that the engine has not reported yet."""
        self.select_run(run)
        self.publish(self.state)
        await self.action_go("dashboard")

    async def open_profile(self, path: Path) -> None:
        """Go to this profile, which may be new."""
        from cockpit.screens.profile import ProfileScreen

        await self.action_go("profile")
        if isinstance(self.screen, ProfileScreen):
            self.screen.load_files(path)

    def pop_screen(self) -> AwaitComplete:
        """As Textual, but a dialog that is closed twice, or has been left behind on another screen, ends nothing."""
        return super().pop_screen() if len(self._screen_stack) > 1 else AwaitComplete()

    @property
    def screen_name(self) -> str:
        """The name of the screen that is shown, whichever engine's it is."""
        return self.current_mode.partition("@")[0]

    async def action_go(self, name: str) -> None:
        """Show the screen `name`. A dialog has to be answered first; what else lies on this screen stays there."""
        await self._go_to(_mode_of(name, _engine_of(self.current_mode)))

    async def _go_to(self, mode: str) -> None:
        if isinstance(self.screen, FaultPage):
            await self.leave_fault(self.screen)
        if self.screen.is_modal:
            return
        if mode == self.current_mode:
            while len(self.screen_stack) > 1:
                self.pop_screen()  # not awaited: a click on the bar of what is removed would wait for itself
            return
        self._visited.append(self.current_mode)
        await self.switch_mode(mode)
        self._show_bar()

    @opens_dialog
    @work(group="hosts", exclusive=True)
    async def action_hosts(self) -> None:
        """Choose the host that the screens show."""
        from cockpit.widgets.hosts_dialog import HostsDialog

        if not any(isinstance(screen, HostsDialog) for screen in self.screen_stack):
            at = await self.push_screen_wait(HostsDialog(_engine_of(self.current_mode)))
            if at is not None:
                await self._go_to(_mode_of(self.screen_name, at))

    async def go_to_host(self, at: int) -> None:
        """Show this screen of the engine with this index."""
        await self._go_to(_mode_of(self.screen_name, at))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "hosts" and not self.engines[0].name:
            return False  # there is only this one
        return super().check_action(action, parameters)

    async def action_back(self) -> None:
        if len(self.screen_stack) > 1:
            self.pop_screen()
        elif self._visited:
            await self.switch_mode(self._visited.pop())

    def action_detach(self) -> None:
        """Exit; the runs go on. What is not saved is asked about first."""
        if isinstance(self.screen, LeaveDialog) or not self.drafts.kept():
            self.exit()
        else:
            self._ask_to_leave()

    def action_interrupt(self) -> None:
        """ctrl+c copies the selected text, else stops what is going on, else clears the line, else asks whether to
        leave; a second one leaves."""
        from cockpit.widgets.chat_input import ChatInput

        selected = getattr(self.focused, "selected_text", "") or self.screen.get_selected_text()
        line = self.focused
        if selected:
            self.copy_to_clipboard(selected)
        elif any(worker.group == "leave" and worker.is_running for worker in self.workers):  # it asks, or is about to
            self.exit()
        elif isinstance(self.screen, CockpitScreen) and self.screen.interrupt():
            pass
        elif isinstance(line, Input) and line.value:
            line.value = ""
        elif isinstance(line, ChatInput) and line.text:
            line.clear()
        else:
            self._ask_to_leave()

    @opens_dialog
    @work(exclusive=True, group="leave")
    async def _ask_to_leave(self) -> None:
        self.drafts.flush()
        answer = await self.push_screen_wait(LeaveDialog(self.drafts.kept()))
        if answer == "d":
            self.drafts.drop_all()
        if answer is not None:
            self.exit()

    # ── exceptions ────────────────────────────────────────────────────────────────────────────────────────────────

    def show_fault(self, fault: Fault) -> None:
        if fault.screen is not None and fault.screen is self._discarded:
            return
        if isinstance(self.screen, FaultPage):
            self.screen.count()
            return
        from cockpit.screens.fault import FaultScreen

        self.push_screen(FaultScreen(fault, str(self.fault_log)))

    @work(group="fault")
    async def action_close_fault(self) -> None:
        if isinstance(self.screen, FaultPage):
            await self.leave_fault(self.screen)

    async def leave_fault(self, page: FaultPage) -> None:
        """Close the page about a fault, and the screen that failed if it cannot be used any more."""
        fault = page.fault
        self._discarded = fault.screen if fault.broken else None
        await self._try(self.pop_screen())
        if fault.broken and fault.screen is self.screen:
            await self._discard(self.screen)
        else:
            self.went_back(fault.screen)

    async def _discard(self, screen: Screen[Any]) -> None:
        """Close a dialog as Esc would; make a screen with a key anew the next time that it is opened."""
        if len(self.screen_stack) > 1:
            screen.dismiss(None)
            return
        broken = self.current_mode
        self._visited = [name for name in self._visited if name != broken]
        other = self._visited.pop() if self._visited else next(name for name in self.MODES if name != broken)
        await self._try(self.switch_mode(other))
        await self._try(self.remove_mode(broken))
        self.add_mode(broken, self.MODES[broken.partition("@")[0]])

    async def _try(self, change: Awaitable[Any]) -> None:
        """Await a change of screens: one that cannot be drawn fails once more while it is removed."""
        try:
            await change
        except Exception as error:  # noqa: BLE001 - there is a page about it already
            self.catch(error, self._discarded)

    def action_command_palette(self) -> None:
        """Open the palette, or close it. There is one: help may lie on it, and ctrl+p reaches through everything."""
        if isinstance(self.screen, CommandPalette):
            self.screen.dismiss()
        elif not any(isinstance(screen, CommandPalette) for stack in self._screen_stacks.values() for screen in stack):
            self.push_screen(CommandPalette(placeholder=tr("an action, run, profile, setting, checkpoint or host")))

    def action_help(self) -> None:
        from cockpit.screens.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.screen.dismiss()
        else:
            self.push_screen(HelpScreen(self.screen))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette's entries: the screens, the keys of the current screen, and the app's own commands."""
        for key, (name, (title, _)) in enumerate(SCREENS.items(), start=1):
            yield SystemCommand(tr(title), tr("screen {key}", key=key), partial(self.action_go, name))
        for active in screen.active_bindings.values():
            binding = active.binding
            own = active.node is screen and isinstance(screen, CockpitScreen) and "." not in binding.action
            if own and active.enabled and binding.description:
                command = partial(self.run_action, binding.action, default_namespace=screen)
                where = f" · {binding.id}" if binding.id else ""
                yield SystemCommand(
                    tr(binding.description),
                    tr("key {get_key_display}{where}", get_key_display=self.get_key_display(binding), where=where),
                    command,
                )
        if self.engines[0].name:
            yield SystemCommand(tr("Hosts"), tr("choose the host that the screens show"), self.action_hosts)
        yield SystemCommand(tr("Theme"), tr("choose the colours"), self.action_change_theme)
        yield SystemCommand(tr("Language · 语言"), tr("choose the language: English or 中文"), self.action_language)
        yield SystemCommand(tr("Help"), tr("keys of this screen"), self.action_help)
        yield SystemCommand(tr("Detach"), tr("leave the app; the runs go on"), self.action_detach)


def _mode_of(screen: str, engine: int) -> str:
    """Textual's mode for a screen of the engine with this index."""
    return f"{screen}@{engine}" if engine else screen


def _engine_of(mode: str) -> int:
    return int(mode.partition("@")[2] or 0)
