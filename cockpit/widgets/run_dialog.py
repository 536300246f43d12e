"""A large panel over the screen for what is one key away. While it is open it looks once a second whether there is more to show;
closed, it is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen

from cockpit.connection.engine_app import EngineApp
from cockpit.state.app_state import RunTold
from engine.protocol.messages import Run

Result = TypeVar("Result")
LOOK = 1.0
"""Seconds between two looks at what the run has told."""


class Sheet(ModalScreen[Result]):
    """About one run. Subclasses give `compose_sheet`, and `show`, which is called with the run and all it told when that has changed."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    Sheet { align: center middle; }
    Sheet > #sheet { width: 96%; height: 92%; border: round $accent; background: $surface; padding: 0 1; }
    """
    BINDINGS = [("escape,q", "dismiss(None)", "Close")]
    KEYS = "↑↓ moves · Esc closes"

    def __init__(self, title: str, run: str) -> None:
        super().__init__()
        self.heading, self.run_id = title, run
        self._known: tuple[Run, RunTold] | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="sheet") as box:
            box.border_title, box.border_subtitle = self.heading, self.KEYS
            yield from self.compose_sheet()

    def compose_sheet(self) -> ComposeResult:
        raise NotImplementedError

    def show(self, run: Run, told: RunTold) -> None:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.call_after_refresh(self.look, again=True)
        self.set_interval(LOOK, self.look)

    def look(self, again: bool = False) -> None:
        """Show what is new; with `again` all of it, for a width that has changed."""
        state = self.app.state
        run = state.runs.get(self.run_id)
        if run is None:
            return
        known = run, state.told.get(self.run_id, RunTold())
        if again or self._known is None or known[1] is not self._known[1] or run.state != self._known[0].state:
            self._known = known
            self.show(*known)
