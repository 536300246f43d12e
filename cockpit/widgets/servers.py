"""The servers that are running: target, address, requests, and tokens per second over the last minutes."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.app_state import AppState
from cockpit.state.formatting import format_count
from cockpit.widgets.chart import Graph
from cockpit.widgets.line import Line, join_fitting, labelled
from engine.protocol.messages import Service

MAX_PANELS = 3
"""Servers with a panel. Of the others only the number is shown."""
COUNTS = ("running", "queued", "served")
MARKS = {"ready": ("●", "$success"), "busy": ("●", "$accent"), "starting": ("◌", "$warning"), "ended": ("✗", "$error")}


def list_servers(state: AppState) -> list[Service]:
    """The servers that are running or starting, and those that ended with a problem."""
    found = (service for service in state.services.values() if service.kind == "serve")
    return [service for service in found if service.state != "ended" or service.problem]


def describe_server(service: Service, width: int) -> Content:
    """A server's state and figures, in one line."""
    mark, colour = MARKS.get(service.state, ("·", "$text"))
    if service.state == "ended":
        title = tr_engine(service.problem.title) if service.problem else "ended"
        return Content.assemble((f"{mark} ", colour), (title, "$text")).truncate(width, ellipsis=True)
    figures = service.figures
    if not figures:
        return Content.assemble((f"{mark} ", colour), (service.detail or service.state, "$text"))
    errors = figures.get("errors", 0)
    return join_fitting(
        [
            Content.assemble(
                (f"{mark} ", colour),
                (
                    tr("{tokens_per_second:,.0f} tok/s", tokens_per_second=figures.get("tokens_per_second", 0)),
                    "bold $text",
                ),
            ),
            *(labelled(name, format_count(figures.get(name, 0))) for name in COUNTS),
            Content.assemble(("errors ", "$text-muted"), (format_count(errors), "$error" if errors else "$text")),
            labelled(tr("tokens"), format_count(figures.get("tokens", 0))),
        ],
        width,
    )


class ServerPanel(Widget):
    """One server, with its name and address in the frame. On a low screen there is no frame, and they have a row of
    their own."""

    DEFAULT_CSS = """
    ServerPanel {
        height: 3; border: round $primary; border-title-color: $accent; border-subtitle-color: $text-muted; padding: 0
        1;
    }
    ServerPanel > Horizontal { height: 1; }
    ServerPanel > .name { display: none; height: 1; color: $accent; text-wrap: nowrap; text-overflow: ellipsis; }
    ServerPanel Line { width: 4fr; height: 1; text-wrap: nowrap; }
    ServerPanel Graph { width: 1fr; height: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._titles = ("", "")

    def compose(self) -> ComposeResult:
        yield Static(classes="name")
        with Horizontal():
            yield Line()
            yield Graph()

    def show(self, service: Service, rates: tuple[float, ...]) -> None:
        title = tr("served: {target}", target=service.target or service.id)
        address = service.detail if service.figures else ""
        if (title, address) != self._titles:
            self._titles = title, address
            self.border_title, self.border_subtitle = Content(title), Content(address)
            name = Content.assemble(title, (f"  {address}", "$text-muted"))
            self.query_one(".name", Static).update(name, layout=False)
        line = self.query_one(Line)
        line.show(describe_server(service, line.size.width or self.app.size.width * 3 // 4))
        highest = max(rates, default=0.0) or 1.0
        self.query_one(Graph).show([100 * rate / highest for rate in rates])


class Servers(Vertical):
    """Takes no space while there are no servers."""

    DEFAULT_CSS = "Servers { height: auto; } Servers > #more { height: 1; padding: 0 1; color: $text-muted; }"

    def compose(self) -> ComposeResult:
        for _ in range(MAX_PANELS):
            yield ServerPanel()
        yield Static(id="more")

    def on_mount(self) -> None:
        for child in self.children:
            child.display = False

    def show(self, state: AppState) -> None:
        found = list_servers(state)
        visible = found[-MAX_PANELS:]
        for at, panel in enumerate(self.query(ServerPanel)):
            panel.display = at < len(visible)
            if panel.display:
                panel.show(visible[at], state.rates.get(visible[at].id, ()))
        more = self.query_one("#more", Static)
        more.display = len(found) > MAX_PANELS
        if more.display:
            more.update(tr("and {found} more: cockpit serve lists them", found=len(found) - MAX_PANELS), layout=False)
