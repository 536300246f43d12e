"""Runs that are marked to be looked at together: their losses in one chart, all their metrics, how they differ."""

from __future__ import annotations

from textual import work

from cockpit.language.translate import tr
from cockpit.screens.grids import GridsScreen
from cockpit.state.app_state import RunHistory
from cockpit.widgets.chart import Chart, curve_from_series
from cockpit.widgets.chart_axes import run_axes
from cockpit.widgets.chart_raster import LINE, RUN, RUN_MARKS, RUNS, Trace
from engine.protocol.messages import CLOCK, SeriesQuery

LOSS = "train/loss"


class RunOverlayScreen(GridsScreen):
    """Subclasses have a chart `#overlay`, and show the list anew in `show_list`."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: list[str] = []

    def show_list(self) -> None:
        raise NotImplementedError

    def action_compare(self) -> None:
        """Say how the marked runs, or the chosen ones, differ."""
        from cockpit.screens.compare import CompareScreen

        runs = self.list_compared()
        if len(runs) < 2:
            self.notify(tr("mark two runs or more with o, or choose them with space"), severity="warning")
        elif len(self.app.screen_stack) == 1:
            self.app.push_screen(CompareScreen(runs[:RUNS]))

    def list_compared(self) -> list[str]:
        return list(self.marked) or sorted(self.chosen)[:RUNS] or super().list_compared()

    def action_overlay(self) -> None:
        """Mark the selected run, or take its mark away. One more than can be told apart replaces the first."""
        run = self.current_run
        if run is None:
            return
        self.marked = (
            [name for name in self.marked if name != run.id]
            if run.id in self.marked
            else [*self.marked, run.id][-RUNS:]
        )
        self.show_list()
        self.show_overlay()

    def forget_marks(self) -> None:
        """Take the marks from runs that were deleted."""
        left = [run for run in self.marked if run in self.app.state.runs]
        if left != self.marked:
            self.marked = left
            self.show_overlay()

    @work(exclusive=True, group="overlay")
    async def show_overlay(self) -> None:
        self.set_class(bool(self.marked), "-overlay")
        traces, axes = {}, {}
        several = len(self.marked) > 1
        for at, run in enumerate(self.marked):
            reply = await self.app.ask("series", SeriesQuery(run=run, names=[LOSS, CLOCK], points=1000))
            if reply is None:
                return
            role, mark = (RUN + at, RUN_MARKS[at]) if several else (LINE, "")
            traces[run] = Trace(curve_from_series(reply.series[0]), role, band=not several, mark=mark)
            start = self.app.state.histories.get(run, RunHistory()).start
            axes[run] = run_axes(start, reply.series[1].last_step, reply.series[1].last)
        self.query_one("#overlay", Chart).load(traces, axes=axes)

    def action_log_scale(self) -> None:
        self.query_one("#overlay", Chart).toggle_log()

    def action_zoom(self, direction: int) -> None:
        self.query_one("#overlay", Chart).zoom_by(direction)
