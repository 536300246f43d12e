"""The base of large dialogs about one run. An open dialog checks once a second whether there is something new to
show."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen

from cockpit.connection.engine_app import EngineApp
from cockpit.content import Content
from cockpit.state.app_state import RunHistory
from engine.protocol.messages import Run

Result = TypeVar("Result")
POLL = 1.0
"""Seconds between two checks for something new."""


class RunDialog(ModalScreen[Result]):
    """A dialog about one run. Subclasses give `compose_dialog`, and `show`, which is called whenever the run or its
    history has changed."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    RunDialog { align: center middle; }
    RunDialog > #dialog { width: 96%; height: 92%; border: round $accent; background: $surface; padding: 0 1; }
    """
    BINDINGS = [("escape,q", "dismiss(None)", "Close")]
    KEYS = "↑↓ moves · Esc closes"

    def __init__(self, title: str, run: str) -> None:
        super().__init__()
        self.heading, self.run_id = title, run
        self._shown: tuple[Run, RunHistory] | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog") as box:
            box.border_title, box.border_subtitle = Content(self.heading), self.KEYS
            yield from self.compose_dialog()

    def compose_dialog(self) -> ComposeResult:
        raise NotImplementedError

    def show(self, run: Run, history: RunHistory) -> None:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.call_after_refresh(self.refresh_content, force=True)
        self.set_interval(POLL, self.refresh_content)

    def refresh_content(self, force: bool = False) -> None:
        """Show the run when it has changed, or with `force`, for instance after a change of width."""
        state = self.app.state
        run = state.runs.get(self.run_id)
        if run is None:
            return
        current = run, state.histories.get(self.run_id, RunHistory())
        if force or self._shown is None or current[1] is not self._shown[1] or run.state != self._shown[0].state:
            self._shown = current
            self.show(*current)
