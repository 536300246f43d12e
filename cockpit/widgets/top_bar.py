"""The line above every screen: the screens with their keys, the current one, and the connection to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from textual.style import Style
from textual.widget import Widget

from cockpit.connection.engine_app import EngineApp
from cockpit.content import Content
from cockpit.language.translate import tr, tr_all

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

CONNECTIONS = {
    "connecting": ("◌", "$warning", "connecting"),
    "attached": ("●", "$success", "engine"),
    "lost": ("○", "$error", "reconnecting"),
}
"""State of the connection -> mark, colour, text."""
LONGEST_HOST = 28
"""Characters of a host's name."""


class TopBar(Widget):
    """Drawn again only when something on it has changed."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    TopBar {
        height: 1; background: $panel; color: $text; link-style: none; link-background: transparent; link-color: $text;
        link-style-hover: bold; link-background-hover: $primary 40%; link-color-hover: $text;
    }
    """

    def __init__(self, titles: Mapping[str, str], over: str = "") -> None:
        """`titles`: name -> title of each screen, in the order of their keys. `over` is the title of a screen without
        a key that lies on the current one."""
        super().__init__()
        self._titles, self._over = tr_all(titles), tr(over)
        self._right: tuple[Any, ...] = ("connecting", "", 0, False, 0)

    def on_mount(self) -> None:
        self.show(self.app.state)

    def show(self, state: AppState) -> None:
        live = sum(run.state in ("preparing", "running", "paused", "stopping") for run in state.runs.values())
        engine = self.app.engine
        host = engine.name or (state.telemetry.host.name if state.telemetry else "")
        right = (state.connection, host, live, self.app.readonly, engine.seconds_left)
        if right != self._right:
            self._right = right
            self.refresh()

    def render(self) -> Content:
        connection, host, live, readonly, seconds = self._right
        mark, colour, word = CONNECTIONS[connection]
        word = tr(word)
        word += tr(" in {seconds} s", seconds=seconds) if seconds and connection == "lost" else ""
        named = bool(self.app.engines[0].name)
        host = f"{host[: LONGEST_HOST - 1]}…" if len(host) > LONGEST_HOST else host
        right = Content.assemble(
            (tr("{live} live  ", live=live) if live else "", "$text-muted"),
            ("read-only  ", "$warning") if readonly else "",
            (f"{host} " if host and (named or self.size.width >= 110) else "", "$accent" if named else "$text-muted"),
            (f"{mark} {word} " if self.size.width >= 100 or connection != "attached" else f"{mark} ", colour),
        )
        here = self.app.current_mode.partition("@")[0]  # each engine has screens of its own
        full = self._tabs(here, longest=9)
        left = full if full.cell_length + right.cell_length < self.size.width else self._tabs(here, longest=0)
        return Content.assemble(left, " " * (self.size.width - left.cell_length - right.cell_length), right)

    def _tabs(self, here: str, longest: int) -> Content:
        """The screens with their keys. Titles over `longest` characters are left out, except that of the screen
        `here`."""
        tabs = [Content.styled(" cockpit ", "bold $accent")]
        for key, (name, title) in enumerate(self._titles.items(), start=1):
            if name == here:
                over = f"› {self._over} " if self._over else ""
                tab = Content.styled(f" {key} {title} {over}", "bold $text on $primary")
            else:
                label = f"{title} " if len(title) <= longest else ""
                tab = Content.assemble((f" {key} ", "$text-muted"), label)
            tabs.append(tab.stylize(Style.from_meta({"@click": ("app.go", (name,))})))
        return Content("").join(tabs)
