"""All metrics of a run, or of several runs over each other, in panels that the user arranges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Input, Static

from cockpit.connection.panel_store import load_layout, save_layout
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.state.app_state import RunHistory
from cockpit.state.formatting import counted
from cockpit.state.panel_layout import PanelLayout, page_of, panel_grid
from cockpit.widgets.canvas import RUN_COLOURS
from cockpit.widgets.chart import Chart, curve_from_series
from cockpit.widgets.chart_axes import Mapping, run_axes
from cockpit.widgets.chart_raster import LINE, RUN, RUN_MARKS, RUNS, Trace
from cockpit.widgets.curve import Curve
from cockpit.widgets.picker import Choice, Picker
from engine.protocol.messages import CLOCK, Points, Run, RunRef, SeriesQuery, Snapshot

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

FRAME = 1.0
"""Seconds between two frames of a panel: there are many."""
POINTS = 600
"""Buckets requested of each curve."""


class MetricsScreen(CockpitScreen):
    OVER = "Metrics"
    AUTO_FOCUS = ""
    HELP_TEXT = """\
Each metric of a run has a panel of its own; Tab goes to the next panel. A filter shows the metrics whose names
contain its words; a word after ! must not be in the name. Their arrangement is kept for each profile. All panels
share the crosshair, the range and the x axis; each has its own scale and smoothing. Runs differ in colour and marks."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "maximise", "Maximise"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("o", "overlay", "Add run"),
        Binding("y", "log_scale", "Log"),
        Binding("less_than_sign", "move(-1)", "Move", key_display="<"),
        Binding("greater_than_sign", "move(1)", "Move on", key_display=">", show=False),
        Binding("d", "hide", "Hide"),
        Binding("u", "unhide", "Show hidden", show=False),
        Binding("pagedown", "page(1)", "Next", key_display="PgDn"),
        Binding("pageup", "page(-1)", "Previous", show=False),
        Binding("plus,equals_sign", "zoom(1)", "Zoom in", key_display="+", show=False),
        Binding("minus", "zoom(-1)", "Zoom out", key_display="-", show=False),
        Binding("escape", "leave", "Back", key_display="Esc"),
        Binding("q", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    MetricsScreen #legend { height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    MetricsScreen #words { display: none; height: 1; border: none; padding: 0 1; background: $panel; }
    MetricsScreen #words.-open { display: block; }
    MetricsScreen #panels { layout: grid; height: 1fr; }
    MetricsScreen #nothing { display: none; height: 1fr; content-align: center middle; }
    MetricsScreen.-nothing #nothing { display: block; }
    MetricsScreen.-nothing #panels { display: none; }
    """

    def __init__(self, runs: list[str]) -> None:
        super().__init__()
        self.runs = runs[:RUNS]
        first = self.app.state.runs.get(runs[0])
        self._profile = first.name if first is not None else runs[0]
        self.layout_kept = load_layout(self.app.home, self._profile)
        self._page = 0
        self._known: list[str] = []
        """The metrics that the runs had when the panels were laid out."""
        self._shown: list[str] = []
        """The metrics of this page, in the order of the panels."""
        self._grid = (0, 0)
        self._curves: dict[tuple[str, str], Curve] = {}
        """Run and metric of a panel -> its curve, as far as it was requested."""
        self._axes: dict[str, dict[str, Mapping]] = {}
        self._attempts: dict[str, int] = {}
        self._early: list[Points] = []
        self._loading = 0
        """How many workers request curves: one that is replaced by another may end after that has begun."""
        self._missed = False

    def compose_body(self) -> ComposeResult:
        yield Static(id="legend")
        yield Input(placeholder=tr("words in the name; !word leaves out"), id="words", compact=True)
        yield Container(id="panels")
        yield Static(id="nothing")

    def on_mount(self) -> None:
        self._arrange()

    def on_resize(self) -> None:
        self.call_after_refresh(self._arrange)

    def on_screen_resume(self) -> None:
        if self._missed:
            self._missed = False
            self._arrange()
            self._reload()

    # ── which panels ─────────────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> list[str]:
        known = (self.app.state.runs.get(run) for run in self.runs)
        return list(dict.fromkeys(name for run in known if run is not None for name in run.metrics))

    @property
    def words(self) -> str:
        return self.query_one("#words", Input).value

    def _arrange(self) -> None:
        """Lay the panels out anew, if their number or place has changed."""
        panels = self.query_one("#panels", Container)
        width, height = (
            self.app.size.width,
            max(3, self.app.size.height - 3 - self.query_one("#words").has_class("-open")),
        )
        self._known = self.names()
        names = self.layout_kept.arrange(self._known, self.words)
        columns, rows = panel_grid(width, height, len(names))
        shown, self._page, pages = page_of(names, columns * rows, self._page)
        self.set_class(not shown, "-nothing")
        if not shown:
            self.query_one("#nothing", Static).update(self._why_empty())
        self._show_legend(len(names), pages)
        if (columns, rows) != self._grid:
            self._grid = (columns, rows)
            panels.styles.grid_size_columns, panels.styles.grid_size_rows = columns, rows
        if shown == self._shown and panels.children:
            return
        focused, whole = self._chart(), self.maximized is not None
        at = focused.heading if focused is not None else ""
        self._shown = shown
        self.minimize()
        panels.remove_children()
        charts = [self._make(name, focused) for name in shown]
        panels.mount_all(charts)
        kept = next((chart for chart in charts if chart.heading == at), charts[0] if charts else None)
        if kept is not None and not self.query_one("#words").has_focus:
            self.call_after_refresh(self.set_focus, kept)
        if kept is not None and whole and kept.heading == at:
            self.call_after_refresh(self.maximize, kept)
        self.call_after_refresh(self._load)

    def _make(self, name: str, like: Chart | None) -> Chart:
        """A panel that looks at the same part as `like`."""
        layout = self.layout_kept
        chart = Chart(name, smoothing=layout.smooth(name), legend=False, frame=FRAME)
        chart.logarithmic, chart.kind = name in layout.logarithmic, layout.kind
        if like is not None and like.kind == layout.kind:
            chart.window, chart.cross = like.window, like.cross
        return chart

    def _why_empty(self) -> str:
        if self.words:
            return tr("No metric has these words in its name; Esc takes the filter away")
        if self.names():
            return tr("All panels are hidden; u shows them again")
        return tr("No metrics yet: they come with the first step")

    def _show_legend(self, count: int, pages: int) -> None:
        parts, light = [], not self.app.current_theme.dark
        for at, run in enumerate(self.runs):
            mark = f"{RUN_MARKS[at]} " if len(self.runs) > 1 else ""
            parts.append(Content.assemble((mark, RUN_COLOURS[at][light]), (run, "bold $text")))
        hidden = len(self.layout_kept.hidden & set(self.names())) if not self.words else 0
        facts = [counted(count, "metric")]
        facts += [tr("{hidden} hidden", hidden=hidden)] if hidden else []
        facts += [tr("page {page}/{pages}", page=self._page + 1, pages=pages)] if pages > 1 else []
        facts += [tr("over {kind}", kind=self.layout_kept.kind)] if self.layout_kept.kind != "step" else []
        parts.append(Content.styled(" · ".join(facts), "$text-muted"))
        self.query_one("#legend", Static).update(Content("   ").join(parts))

    def _charts(self) -> list[Chart]:
        return list(self.query(Chart))

    def _chart(self) -> Chart | None:
        """The panel with the focus, else the first."""
        if isinstance(self.focused, Chart):
            return self.focused
        return next(iter(self._charts()), None)

    # ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, state: AppState, body: object) -> None:
        gone = [run for run in self.runs if run not in state.runs]
        if gone and len(gone) < len(self.runs):
            self.runs = [run for run in self.runs if run in state.runs]
            self._arrange()
            self._reload()
        if not self.is_active:
            self._missed = self._missed or isinstance(body, (Points, Snapshot))
            return
        if isinstance(body, Snapshot):  # points were missed, or the engine is another
            self._reload()
        if self._known != self.names():
            self._arrange()
        if isinstance(body, Points) and body.run in self.runs:
            self._append(body)

    def _append(self, points: Points) -> None:
        if self._loading:
            self._early.append(points)
            return
        if points.run not in self.runs:
            return
        if self._attempts.get(points.run, points.attempt) != points.attempt:
            self._attempts[points.run] = points.attempt
            self._reload()  # a later attempt replaces values of the same steps
            return
        self._attempts[points.run] = points.attempt
        for chart in self._charts():
            if chart.heading in points.values:
                if points.run not in chart.traces:
                    chart.add(points.run, self._trace(points.run, Curve()))
                chart.append(points.run, points.values[chart.heading])

    def _reload(self) -> None:
        self._curves, self._axes = {}, {}
        self._load()

    @work(exclusive=True, group="curves")
    async def _load(self) -> None:
        """Request the curves that the panels lack, and show all. Others get no points, so they are dropped."""
        self._curves = {at: curve for at, curve in self._curves.items() if at[0] in self.runs and at[1] in self._shown}
        self._loading += 1
        try:
            await asyncio.gather(*(self._request(run) for run in self.runs))
        finally:
            self._loading -= 1
        for chart in self._charts():
            chart.load(self._traces(chart.heading), self._limit(), self._axes)
            if chart.kind != self.layout_kept.kind:
                chart.show_kind(self.layout_kept.kind)
                chart.draw()
        early, self._early = self._early, []
        for points in early:
            self._append(points)

    async def _request(self, run: str) -> None:
        names = [name for name in self._shown if (run, name) not in self._curves]
        if not names:
            return
        query = SeriesQuery(run=run, names=[*names, CLOCK], points=POINTS)
        wanted = [self.app.ask("series", query)]
        if run not in self.app.state.histories:
            wanted.append(self.app.ask("show", RunRef(run=run)))
        reply, *details = await asyncio.gather(*wanted)
        for detail in details:
            if detail is not None:
                self.app.take(detail)
        if reply is None:
            return
        for series in reply.series:
            if series.name == CLOCK:
                start = self.app.state.histories.get(run, RunHistory()).start
                self._axes[run] = run_axes(start, series.last_step, series.last)
            else:
                self._curves[run, series.name] = curve_from_series(series)
        known = self.app.state.runs.get(run)
        if known is not None:
            self._attempts.setdefault(run, known.attempt)

    def _traces(self, name: str) -> dict[str, Trace]:
        curves = ((run, self._curves.get((run, name))) for run in self.runs)
        return {run: self._trace(run, curve) for run, curve in curves if curve is not None and len(curve)}

    def _trace(self, run: str, curve: Curve) -> Trace:
        several, at = len(self.runs) > 1, self.runs.index(run)
        role, mark = (RUN + at, RUN_MARKS[at]) if several else (LINE, "")
        return Trace(curve, role=role, band=not several, mark=mark)

    def _limit(self) -> int:
        known = (self.app.state.runs.get(run) for run in self.runs)
        return max((run.max_steps for run in known if run is not None), default=0)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(Chart.Changed)
    def _chart_changed(self, event: Chart.Changed) -> None:
        """What is shown of one panel is shown of all; its scale and smoothing are kept."""
        chart = event.chart
        for other in (each for each in self._charts() if each is not chart):
            other.share_view(chart)
        kept = self.layout_kept
        lacks = chart.kind == "step" and kept.kind not in chart.kinds()  # then the user has not chosen steps
        self._keep(
            kept.adjusted(
                chart.heading,
                logarithmic=chart.logarithmic,
                smoothing=chart.smoothing,
                kind=kept.kind if lacks else chart.kind,
            )
        )

    def _keep(self, layout: PanelLayout) -> None:
        if layout != self.layout_kept:
            self.layout_kept = layout
            save_layout(self.app.home, self._profile, layout)
            self._arrange()

    def action_maximise(self) -> None:
        chart = self._chart()
        if self.maximized is not None:
            self.minimize()
        elif chart is not None:
            self.maximize(chart)

    def action_log_scale(self) -> None:
        if (chart := self._chart()) is not None:
            chart.toggle_log()

    def action_zoom(self, direction: int) -> None:
        if (chart := self._chart()) is not None:
            chart.zoom_by(direction)

    def action_move(self, by: int) -> None:
        if (chart := self._chart()) is not None:
            self._keep(self.layout_kept.moved(chart.heading, by, self.names(), self.words))

    def action_hide(self) -> None:
        if (chart := self._chart()) is not None:
            self._keep(self.layout_kept.toggled(chart.heading))

    def action_unhide(self) -> None:
        """Show all hidden panels again."""
        layout = self.layout_kept
        for name in layout.hidden:
            layout = layout.toggled(name)
        self._keep(layout)

    def action_page(self, by: int) -> None:
        self._page += by
        self._arrange()

    def action_filter(self) -> None:
        field = self.query_one("#words", Input)
        field.add_class("-open")
        field.focus()

    @on(Input.Changed, "#words")
    def _words_changed(self) -> None:
        self._page = 0
        self._arrange()

    @on(Input.Submitted, "#words")
    def _words_submitted(self, event: Input.Submitted) -> None:
        event.input.set_class(bool(event.value), "-open")
        if (chart := next(iter(self._charts()), None)) is not None:
            self.set_focus(chart)
        self._arrange()

    @opens_dialog
    @work(group="overlay")
    async def action_overlay(self) -> None:
        """Draw another run over these, or take one of them away."""
        runs: list[Run] = self.app.state.sorted_runs()
        choices = [
            Choice(run.id, f"{'shown; takes it away' if run.id in self.runs else run.name} · {run.state}")
            for run in runs
            if run.metrics and (run.id not in self.runs or len(self.runs) > 1)
        ]
        if not choices:
            self.notify(tr("there is no other run with metrics"), severity="warning")
            return
        chosen = await self.app.push_screen_wait(Picker(tr("Draw which run over these"), tr("type to filter"), choices))
        if chosen is None or chosen not in self.app.state.runs:
            return
        if chosen in self.runs:
            self.runs = [run for run in self.runs if run != chosen]
        elif len(self.runs) == RUNS:
            self.notify(tr("{RUNS} runs are the most that can be told apart", RUNS=RUNS), severity="warning")
            return
        else:
            self.runs = [*self.runs, chosen]
        self._arrange()
        self._load()

    def action_leave(self) -> None:
        """Esc closes the filter, then gives a maximised panel back, then leaves."""
        field = self.query_one("#words", Input)
        if field.has_class("-open"):
            field.value = ""
            field.remove_class("-open")
            self._arrange()
            if (chart := self._chart()) is not None:
                self.set_focus(chart)
        elif self.maximized is not None:
            self.minimize()
        else:
            self.app.pop_screen()
