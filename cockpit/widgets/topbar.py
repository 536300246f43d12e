"""One line above every screen: where one can go, where one is, and whether the engine is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.widget import Widget

from cockpit.screens import SCREENS

if TYPE_CHECKING:
    from cockpit.state import State

CONNECTIONS = {
    "connecting": ("◌", "$warning", "connecting"),
    "attached": ("●", "$success", "engine"),
    "lost": ("○", "$error", "reconnecting"),
}
"""State of the connection -> mark, colour, word."""


class TopBar(Widget):
    """Fed by the app through `show`; drawn only when something on it changed."""

    DEFAULT_CSS = "TopBar { height: 1; background: $panel; color: $text; }"

    def __init__(self) -> None:
        super().__init__()
        self._right: tuple[Any, ...] = ("connecting", "", 0, False)

    def on_mount(self) -> None:
        self.show(self.app.state)  # type: ignore[attr-defined]

    def show(self, state: State) -> None:
        live = sum(run.state in ("preparing", "running", "paused", "stopping") for run in state.runs.values())
        host = state.telemetry.host.name if state.telemetry else ""
        right = (state.connection, host, live, self.app.readonly)  # type: ignore[attr-defined]
        if right != self._right:
            self._right = right
            self.refresh()

    def render(self) -> Content:
        connection, host, live, readonly = self._right
        mark, colour, word = CONNECTIONS[connection]
        right = Content.assemble(
            (f"{live} live  " if live else "", "$text-muted"),
            ("read-only  ", "$warning") if readonly else "",
            (f"{host} " if host and self.size.width >= 110 else "", "$text-muted"),
            (f"{mark} {word} " if self.size.width >= 100 or connection != "attached" else f"{mark} ", colour),
        )
        here = self.app.current_mode
        full = _tabs(here, shortest=9)
        left = full if full.cell_length + right.cell_length < self.size.width else _tabs(here, shortest=0)
        return Content.assemble(left, " " * (self.size.width - left.cell_length - right.cell_length), right)


def _tabs(here: str, shortest: int) -> Content:
    """The screens with their keys; where there is no room (`shortest` 0) only the present one keeps its name."""
    tabs = [Content.styled(" cockpit ", "bold $accent")]
    for key, (name, (title, _)) in enumerate(SCREENS.items(), start=1):
        if name == here:
            tabs.append(Content.styled(f" {key} {title} ", "bold $text on $primary"))
        else:
            label = f"{title} " if len(title) <= shortest else ""
            tabs.append(Content.assemble((f" {key} ", "$text-muted"), label))
    return Content("").join(tabs)
