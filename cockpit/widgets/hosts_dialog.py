"""The list of the app's hosts (`H`): cards, runs, queue and link of each. Enter shows the screens of one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList

from cockpit.connection.attachment import Attachment
from cockpit.connection.engine_app import EngineApp
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.widgets.host_summary import describe_host
from engine.protocol.messages import ProblemError

POLL = 1.0
"""Seconds between two updates."""
LINKS = {"connecting": ("◌", "$warning"), "attached": ("●", "$success"), "lost": ("○", "$error")}
"""State of a connection -> mark and colour."""


class HostsDialog(ModalScreen[int | None]):
    """Dismissed with the index of the chosen engine, or with None for Esc."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    HostsDialog { align: center middle; }
    HostsDialog > Vertical { width: 96%; height: 92%; border: round $accent; background: $surface; padding: 0 1; }
    HostsDialog OptionList {
        height: 1fr; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis;
    }
    """
    BINDINGS = [
        Binding("escape,q,H", "dismiss(None)", "Close"),
        Binding("r", "retry", "Try again"),
        Binding("a", "answer", "Answer ssh"),
        Binding("j", "cursor(1)", "Down", show=False),
        Binding("k", "cursor(-1)", "Up", show=False),
    ]

    def __init__(self, shown: int) -> None:
        """`shown`: the index of the engine whose screens are shown."""
        super().__init__()
        self._shown = shown
        self._lines: list[Content] = []

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = tr("Hosts")
            box.border_subtitle = tr("Enter shows · r tries again · a answers ssh's questions · Esc closes")
            yield OptionList(compact=True)

    def on_mount(self) -> None:
        self._lines = self._describe()
        listing = self.query_one(OptionList)
        listing.add_options(self._lines)
        listing.highlighted = self._shown
        listing.focus()
        self.set_interval(POLL, self._update)

    def _describe(self) -> list[Content]:
        return [
            describe_host(
                engine.name, LINKS[engine.state.connection], _describe_link(engine), engine.state, at == self._shown
            )
            for at, engine in enumerate(self.app.engines)
        ]

    def _update(self) -> None:
        listing = self.query_one(OptionList)
        for at, line in enumerate(self._describe()):
            if not line.is_same(self._lines[at]):
                listing.replace_option_prompt_at_index(at, line)
                self._lines[at] = line

    @property
    def _chosen(self) -> Attachment:
        return self.app.engines[self.query_one(OptionList).highlighted or 0]

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)

    def action_cursor(self, by: int) -> None:
        listing = self.query_one(OptionList)
        listing.action_cursor_down() if by > 0 else listing.action_cursor_up()

    def action_retry(self) -> None:
        """Try at once to attach to the host that is lost."""
        self._chosen.retry()

    def action_answer(self) -> None:
        """Leave the terminal to ssh, which may ask for a password or about a host key, until it has connected."""
        engine = self._chosen
        if engine.link is None or engine.link.is_connected:
            self.notify(tr("there is a connection already"))
            return
        engine.link.give_up()
        try:
            with self.app.suspend(), _interruptible():
                engine.link.connect(ask=True)
        except KeyboardInterrupt:
            self.notify(tr("given up"))
        except SuspendNotSupported:
            self.notify(tr("try `ssh {name}` in a terminal", name=engine.name), severity="warning")
        except ProblemError as error:
            self.app.notify_problem(error.problem)
        engine.retry()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl+c raises KeyboardInterrupt here; elsewhere asyncio ends the whole app."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _describe_link(engine: Attachment) -> str:
    words = {"connecting": "connecting", "attached": "attached", "lost": tr("no connection")}[engine.state.connection]
    if engine.state.connection == "lost":
        words += (
            tr(", next try in {seconds_left} s", seconds_left=engine.seconds_left)
            if engine.seconds_left
            else tr(", connecting")
        )
    return words
