"""What every screen of the app stands on: the bar at the top, the keys at the foot, and the road for what the engine says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.screen import Screen

from cockpit.widgets.key_bar import KeyBar
from cockpit.widgets.topbar import TopBar

if TYPE_CHECKING:
    from cockpit.app import CockpitApp
    from cockpit.state import State


class CockpitScreen(Screen[None]):
    """A screen on a key. Subclasses give `compose_body` and, when they show what happens, `receive`.

    `self.app.state` is the present `State`; `await self.app.ask(operation, message)` asks the engine and returns the reply, or None
    after it has shown why there is none; `self.app.open_run(run_id)` goes to the dashboard of a run; `self.app.home` is the `Home`.
    """

    if TYPE_CHECKING:
        app: CockpitApp  # type: ignore[assignment]

    HELP_TEXT = ""
    """A few lines for `?`, above the keys."""

    def compose(self) -> ComposeResult:
        yield TopBar()
        yield from self.compose_body()
        yield KeyBar()

    def compose_body(self) -> ComposeResult:
        """The widgets between the top bar and the footer."""
        return ()

    def receive(self, state: State, body: object) -> None:
        """Called after `body` (a Snapshot or a published body) was taken into `state`, for every mounted screen, shown or not."""

    def _compositor_refresh(self) -> None:
        """Textual marks a screen under a modal for repainting each time it has repainted it: every tick of a timer below would then
        send the whole dimmed screen again, 25 kB."""
        super()._compositor_refresh()
        if not self.is_active:
            self._repaint_required = False
