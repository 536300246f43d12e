"""One line above every screen: where one can go, where one is, and whether the engine is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.widget import Widget

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
        from cockpit.app import SCREENS

        connection, host, live, readonly = self._right
        mark, colour, word = CONNECTIONS[connection]
        where = f"{host} " if host and self.size.width >= 100 else ""
        right = Content.assemble(
            (f"{live} live  " if live else "", "$text-muted"),
            ("read-only  ", "$warning") if readonly else "",
            (where, "$text-muted"),
            (f"{mark} {word} ", colour),
        )
        here = self.app.current_mode
        wide = self.size.width >= 76 + right.cell_length - 16
        tabs = [Content.styled(" cockpit ", "bold $accent")]
        for key, (name, title, _) in zip("123456", SCREENS, strict=True):
            label = title if wide or name == here else title[:4]
            tabs.append(
                Content.styled(f" {key} {label} ", "bold $text on $primary")
                if name == here
                else Content.assemble((f" {key} ", "$text-muted"), (f"{label} ", "$text"))
            )
        left = Content("").join(tabs)
        gap = max(0, self.size.width - left.cell_length - right.cell_length)
        return Content.assemble(left, " " * gap, right)
