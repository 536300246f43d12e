"""The dashboard: one run, live, with its state, devices, curves and log, and the keys that control it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.screens.run_keeping import RunKeepingScreen
from cockpit.state.app_state import AppState, RunHistory, adjacent_run
from cockpit.state.run_history import chart_marks
from cockpit.widgets.chart import Chart, curve_from_series
from cockpit.widgets.chart_axes import run_axes
from cockpit.widgets.chart_raster import Trace
from cockpit.widgets.devices import SLIM, Devices
from cockpit.widgets.line import MUTED, Line
from cockpit.widgets.log_tail import LogTail
from cockpit.widgets.run_panels import (
    Notice,
    RunHeader,
    Side,
    evaluation_rows,
    fact_rows,
    format_table,
    loss_bounds,
    metric_rows,
)
from cockpit.widgets.throttle import Throttle
from engine.protocol.messages import (
    CLOCK,
    LogQuery,
    Points,
    Run,
    RunRef,
    SeriesQuery,
    Snapshot,
    Telemetry,
    TelemetryHistory,
    TelemetryQuery,
)
from engine.protocol.states import LIVE, STARTED

CURVES = {
    "train/loss": "loss",
    "train/learning_rate": "rate",
    "train/grad_norm": "grad",
    "train/tokens_per_second": "speed",
}
"""Metric -> the chart that shows it."""
EVALUATION = "eval/loss"
POINTS = 1000
"""Buckets requested of each curve: more than a terminal has dot columns."""
SMOOTHING = 0.6
"""The smoothing of noisy curves until the user changes it."""
LOG_PERIOD = 1.0
FLAT = 18
"""Lines below which the log has no room."""
CHARTED = 37
"""Lines from which the small charts mostly have room. Once it is laid out, `Side` says whether they have."""

EMPTY = """\
[bold $accent]No runs yet.[/]

[bold]3[/]  Profile: pick a profile, change it, launch it
[bold]2[/]  Data: look at the rows it would train on
[bold]6[/]  Doctor: is this machine ready?

In another terminal:
[bold]cockpit demo[/]             train a small model in minutes
[bold]cockpit train PROFILE[/]    same as launching it here\
"""


class DashboardScreen(RunKeepingScreen):
    HELP_TEXT = """\
One run, live. The bright line is the smoothed loss, the shade behind it the measured one, ◆ an evaluation.
┊ marks a step at which something changed (lr, clip, eval, save, end, batch, pause, skip, back): w lists the changes.
╌ is a threshold of the profile; ✓ and ✗ in the evaluation show which are reached."""
    CSS_PATH = "dashboard.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "bad_batch", "Batch"),
        Binding("p", "pause", "Pause"),
        Binding("p", "continue", "Continue"),
        Binding("r", "resume", "Resume"),
        Binding("e", "extend", "Extend"),
        Binding("f", "from_step", "From step"),
        Binding("s", "save", "Save"),
        Binding("e", "evaluate", "Eval"),
        Binding("a", "adjust", "Set"),
        Binding("l", "learning_rate", "Learning rate", show=False),
        Binding("x", "stop", "Stop"),
        Binding("v", "replies", "Replies"),
        Binding("w", "history", "History"),
        Binding("d", "why", "Diagnosis", show=False),
        Binding("E", "evaluations", "Results"),
        Binding("m", "metrics", "Metrics"),
        Binding("D", "devices", "Devices", show=False),
        Binding("L", "log", "Log", show=False),
        Binding("F", "fork", "Fork", show=False),
        Binding("number_sign", "tags", "Tags", key_display="#", show=False),
        Binding("n", "note", "Note", show=False),
        Binding("X", "export", "Export", show=False),
        Binding("left_square_bracket", "neighbour(-1)", "Newer run", key_display="[", show=False),
        Binding("right_square_bracket", "neighbour(1)", "Older run", key_display="]", show=False),
        Binding("y", "log_scale", "Log scale", show=False),
        Binding("plus,equals_sign", "zoom(1)", "Zoom in", key_display="+", show=False),
        Binding("minus", "zoom(-1)", "Zoom out", key_display="-", show=False),
        Binding("enter", "maximise", "Maximise", show=False),
        Binding("c", "copy", "Copy", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._loaded_run: str | None = None
        """The run whose curves are loaded."""
        self._charted = ""
        """The run that the charts have shown last."""
        self._attempt = 0
        self._early: list[Points] = []
        """Points that arrived while the curves were being loaded."""
        self._loading = False
        self._missed = False
        """Whether something changed while this screen was not on top."""
        self._log_offset: int | None = None
        self._texts = Throttle(self, self._show_texts, 0.5)
        self._offered: tuple[object, ...] = ()
        """What the keys on offer depend on."""

    def compose_body(self) -> ComposeResult:
        known = {"-empty": self.app.state.shown is None, "-charts": self.app.size.height >= CHARTED}
        self.update_classes(known, update=False)  # before the first layout, which is then the last
        yield Static(tr(EMPTY), id="empty")
        yield RunHeader()
        yield Notice(id="notice")
        yield Devices()
        with Horizontal(id="curves"):
            yield Chart(tr("loss"), smoothing=SMOOTHING, id="loss")
            with Side(id="side"):
                yield Chart(tr("learning rate"), id="rate")
                yield Chart(tr("gradient norm"), smoothing=SMOOTHING, id="grad")
                yield Chart(tr("tokens per second"), smoothing=SMOOTHING, id="speed")
                yield Line(id="facts", classes="panel")
        with Horizontal(id="foot"):
            with Vertical(id="log-panel", classes="panel") as panel:
                panel.border_title = tr("log")
                yield LogTail()
            yield Line(id="evaluation", classes="panel")

    def on_mount(self) -> None:
        self.query_one("#facts").border_title = tr("run")
        self.query_one("#loss").focus()
        self._show_texts()
        self.set_interval(LOG_PERIOD, self._poll_log)

    def on_screen_resume(self) -> None:
        if self._missed:
            self._missed, self._loaded_run = False, None
            self.query_one(Devices).show(self.app.state, self.app.state.run)
        self._follow_selection()

    def on_side_arranged(self, message: Side.Arranged) -> None:
        self.set_class(message.charts, "-charts")
        self._texts.request()

    def on_resize(self) -> None:
        self.update_classes({"-slim": self.size.width < SLIM, "-flat": self.size.height < FLAT})
        self._texts.request()

    @property
    def current_run(self) -> Run | None:
        return self.app.state.run

    # ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, state: AppState, body: object) -> None:
        if isinstance(body, Snapshot):
            self._loaded_run = None
            self._backfill()
        if not self.is_active:  # behind another screen or a dialog, changes would repaint both
            self._missed = True
            return
        if isinstance(body, (Telemetry, TelemetryHistory, Snapshot)):
            self.query_one(Devices).show(state, state.run)
        if isinstance(body, Points) and body.run == state.selected:
            self._append(body)
        if isinstance(body, Telemetry) or not isinstance(body, Points):
            self._texts.request()
        self._follow_selection()

    def _follow_selection(self) -> None:
        if self.app.state.selected != self._loaded_run and self.is_active:
            self._loaded_run = self.app.state.selected
            self._texts.request()
            if self._loaded_run is not None and self.app.client is not None:
                self._load(self._loaded_run)

    def _append(self, points: Points) -> None:
        """Append points. A new attempt replaces the earlier one's values of the same steps, so its curves are loaded
        again."""
        if self._loading:
            self._early.append(points)
        elif points.attempt != self._attempt:
            self._loaded_run = None
        else:
            for name, values in points.values.items():
                if name in CURVES:
                    self.query_one(f"#{CURVES[name]}", Chart).append(name, values)
                elif name == EVALUATION:
                    self.query_one("#loss", Chart).mark("eval", values)

    @work(exclusive=True, group="curves")
    async def _load(self, run: str) -> None:
        self._loading, self._early = True, []
        query = SeriesQuery(run=run, names=[*CURVES, EVALUATION, CLOCK], points=POINTS)
        detail, reply = await asyncio.gather(self.app.ask("show", RunRef(run=run)), self.app.ask("series", query))
        self._loading = False
        if detail is None or reply is None:
            return
        self._attempt = detail.run.attempt
        found = {series.name: series for series in reply.series}
        changed, self._charted = self._charted != run, run
        start = next((entry for entry in reversed(detail.told) if entry["kind"] == "start"), None)
        axes = run_axes(start, found[CLOCK].last_step, found[CLOCK].last)
        for name, chart in CURVES.items():
            curve = curve_from_series(found[name])
            traces = {name: Trace(curve)} if len(curve) else {}
            panel = self.query_one(f"#{chart}", Chart)
            if changed:
                panel.action_follow()  # a range and a crosshair are places in the run before
            panel.load(traces, detail.run.max_steps, {name: axes})
        evaluations = found[EVALUATION]
        self.query_one("#loss", Chart).mark("eval", list(zip(evaluations.last_step, evaluations.last, strict=True)))
        self._log_offset = None
        self.app.take(detail)
        for points in self._early:
            self._append(points)
        await self._read_log()

    @work(exclusive=True, group="backfill")
    async def _backfill(self) -> None:
        history = await self.app.ask("telemetry", TelemetryQuery())
        if history is not None:
            self.app.take(history)

    @work(exclusive=True, group="log")
    async def _poll_log(self) -> None:
        run = self.app.state.run
        if run and run.state in STARTED and self.is_active and self.app.state.connection == "attached":
            await self._read_log()

    async def _read_log(self) -> None:
        run, before = self.app.state.selected, self._log_offset
        if run is None or self.app.client is None:
            return
        reply = await self.app.ask("log", LogQuery(run=run, offset=before, limit=8192 if before is None else 65536))
        if reply is None or run != self.app.state.selected or before != self._log_offset:
            return
        tail = self.query_one(LogTail)
        if before is None:
            tail.clear()
        self._log_offset = reply.offset
        if reply.text:
            tail.append(reply.text)

    # ── showing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _show_texts(self) -> None:
        state, run = self.app.state, self.app.state.shown
        if self.has_class("-empty") != (run is None):
            self.set_class(run is None, "-empty")
            self.refresh_bindings()
        if run is None:
            self._show_empty(state)
            return
        history = state.histories.get(run.id, RunHistory())
        ids = [other.id for other in state.sorted_runs()]
        place = f"{ids.index(run.id) + 1}/{len(ids)} [ ]" if len(ids) > 1 else ""
        waiting = [name for waits, name in self.app.waiting if waits == run.id]
        self.query_one(RunHeader).show_run(run, history, place, waiting)
        self.query_one(Notice).show(run, run.problem or state.problem, history)
        offered = (run.id, run.state, history.bad_batch is not None)
        if self._offered != offered:
            self._offered = offered
            self.refresh_bindings()
        chart = self.query_one("#loss", Chart)
        chart.limit = run.max_steps
        if chart.growing != (run.state in LIVE):
            for each in self.query(Chart):
                each.growing = run.state in LIVE
                each.draw()
        chart.annotate(chart_marks(history), loss_bounds(history))
        evaluation = evaluation_rows(history)
        panel = self.query_one("#evaluation", Line)
        title = tr("evaluation")
        if evaluation:
            last = history.evaluations[-1]
            rows = tr("test rows") if any(name.startswith("test/") for name in last["values"]) else tr("evaluation")
            title = tr("{rows} · step {step:,}", rows=rows, step=last["step"])
        if panel.border_title != title:  # setting it repaints the panel
            panel.border_title = title
        panel.show(format_table(evaluation) if evaluation else Content.styled(tr("nothing measured yet"), MUTED))
        charts = self.has_class("-charts")
        blocks: list[Sequence[tuple[str, str | Content]]] = [fact_rows(run, history)]
        if self.has_class("-narrow") or (self.has_class("-low") and not charts):
            blocks.insert(0, evaluation_rows(history, short=True))
        if not charts:
            blocks.insert(0, metric_rows(run))
        self.query_one("#facts", Line).show(Content("\n").join(format_table(rows) for rows in blocks if rows))

    def _show_empty(self, state: AppState) -> None:
        messages = {"connecting": tr("Starting the engine…"), "lost": tr("The engine is gone; restarting it…")}
        text = "" if state.new and state.connection == "connecting" else messages.get(state.connection)
        if state.problem is not None:
            text = tr_engine(str(state.problem))
        self.query_one("#empty", Static).update(Content(text) if text else tr(EMPTY))

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_neighbour(self, direction: int) -> None:
        other = adjacent_run(self.app.state, direction)
        if other is not None:
            self.app.select_run(other)
            self._follow_selection()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "bad_batch":
            run = self.current_run if self.is_mounted else None
            return run is not None and self.app.state.histories.get(run.id, RunHistory()).bad_batch is not None
        if action in ("replies", "history", "why", "evaluations", "metrics", "log", "fork"):
            return self.is_mounted and self.current_run is not None
        return super().check_action(action, parameters)

    def action_replies(self) -> None:
        from cockpit.widgets.samples_dialog import SamplesDialog

        if self.app.state.run is not None:
            self.app.push_screen(SamplesDialog(self.app.state.run.id))

    def action_history(self) -> None:
        from cockpit.widgets.history_dialog import HistoryDialog

        if self.app.state.run is not None:
            self.app.push_screen(HistoryDialog(tr("what happened"), self.app.state.run.id))

    def action_why(self) -> None:
        from cockpit.widgets.why_dialog import WhyDialog

        if self.app.state.run is not None:
            self.app.push_screen(WhyDialog(self.app.state.run.id))

    def action_log_scale(self) -> None:
        self._chart().toggle_log()

    def action_zoom(self, direction: int) -> None:
        self._chart().zoom_by(direction)

    def action_devices(self) -> None:
        """Show what the devices have done since the run began."""
        if (run := self.app.state.run) is not None and len(self.app.screen_stack) == 1:
            from cockpit.screens.device_history import DeviceHistoryScreen

            self.app.push_screen(DeviceHistoryScreen(run.id))

    def action_maximise(self) -> None:
        """Let the chart with the focus have the screen, or give the others their room back."""
        if self.maximized is not None:
            self.minimize()
        else:
            self.maximize(self._chart())

    def _chart(self) -> Chart:
        """The chart with the focus, else the loss."""
        return self.focused if isinstance(self.focused, Chart) else self.query_one("#loss", Chart)

    def action_copy(self) -> None:
        run = self.app.state.run
        if run is not None:
            figures = "\n".join(f"{name} {value:g}" for name, value in sorted(run.metrics.items()))
            trouble = f"\n{run.problem}\n\n{self.query_one(LogTail).text}" if run.problem else ""
            self.app.copy_to_clipboard(
                tr(
                    "{id} {state} step {step}/{max_steps}\n{directory}\n{figures}{trouble}",
                    id=run.id,
                    state=run.state,
                    step=run.step,
                    max_steps=run.max_steps,
                    directory=run.directory,
                    figures=figures,
                    trouble=trouble,
                )
            )
            self.notify(tr("copied: the run's state and figures"))
