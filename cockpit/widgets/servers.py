"""What is served: for each server its target and address, its requests, and its tokens a second over the last minutes."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from cockpit.state.app_state import State
from cockpit.state.formatting import big
from cockpit.widgets.chart import Graph
from cockpit.widgets.line import Line, figure, joined
from engine.protocol.messages import Service

MOST = 3
"""Servers that have a panel; of more the count is told."""
COUNTS = ("running", "queued", "served")
MARKS = {"ready": ("●", "$success"), "busy": ("●", "$accent"), "starting": ("◌", "$warning"), "ended": ("✗", "$error")}


def servers(state: State) -> list[Service]:
    """Those that are there, and those that ended by an accident."""
    found = (service for service in state.services.values() if service.kind == "serve")
    return [service for service in found if service.state != "ended" or service.problem]


def described(service: Service, width: int) -> Content:
    """How it does, in one line."""
    mark, colour = MARKS.get(service.state, ("·", "$text"))
    if service.state == "ended":
        title = service.problem.title if service.problem else "ended"
        return Content.assemble((f"{mark} ", colour), (title, "$text")).truncate(width, ellipsis=True)
    figures = service.figures
    if not figures:
        return Content.assemble((f"{mark} ", colour), (service.detail or service.state, "$text"))
    errors = figures.get("errors", 0)
    return joined(
        [
            Content.assemble((f"{mark} ", colour), (f"{figures.get('tokens_per_second', 0):,.0f} tok/s", "bold $text")),
            *(figure(name, big(figures.get(name, 0))) for name in COUNTS),
            Content.assemble(("errors ", "$text-muted"), (big(errors), "$error" if errors else "$text")),
            figure("tokens", big(figures.get("tokens", 0))),
        ],
        width,
    )


class ServerPanel(Widget):
    """One server: its name and address in the frame, or, where the screen is low and its style takes the frame away, in a row of their own."""

    DEFAULT_CSS = """
    ServerPanel { height: 3; border: round $primary; border-title-color: $accent; border-subtitle-color: $text-muted; padding: 0 1; }
    ServerPanel > Horizontal { height: 1; }
    ServerPanel > .name { display: none; height: 1; color: $accent; text-wrap: nowrap; text-overflow: ellipsis; }
    ServerPanel Line { width: 4fr; height: 1; text-wrap: nowrap; }
    ServerPanel Graph { width: 1fr; height: 1; }
    """

    def compose(self) -> ComposeResult:
        yield Static(classes="name")
        with Horizontal():
            yield Line()
            yield Graph()

    def show(self, service: Service, rates: tuple[float, ...]) -> None:
        title = f"served: {service.target or service.id}"
        address = service.detail if service.figures else ""
        if (title, address) != (self.border_title, self.border_subtitle):
            self.border_title, self.border_subtitle = title, address
            name = Content.assemble(title, (f"  {address}", "$text-muted"))
            self.query_one(".name", Static).update(name, layout=False)
        line = self.query_one(Line)
        line.show(described(service, line.size.width or self.app.size.width * 3 // 4))
        highest = max(rates, default=0.0) or 1.0
        self.query_one(Graph).show([100 * rate / highest for rate in rates])


class Servers(Vertical):
    """Takes no room while nothing is served."""

    DEFAULT_CSS = "Servers { height: auto; } Servers > #more { height: 1; padding: 0 1; color: $text-muted; }"

    def compose(self) -> ComposeResult:
        for _ in range(MOST):
            yield ServerPanel()
        yield Static(id="more")

    def on_mount(self) -> None:
        for child in self.children:
            child.display = False

    def show(self, state: State) -> None:
        found = servers(state)
        shown = found[-MOST:]
        for at, panel in enumerate(self.query(ServerPanel)):
            panel.display = at < len(shown)
            if panel.display:
                panel.show(shown[at], state.rates.get(shown[at].id, ()))
        more = self.query_one("#more", Static)
        more.display = len(found) > MOST
        if more.display:
            more.update(f"and {len(found) - MOST} more: cockpit serve lists them", layout=False)
