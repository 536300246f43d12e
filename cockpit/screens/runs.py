"""The list of runs, with sorting, a filter, actions on the selected run, and the losses of two runs in one chart."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Input, Static

from cockpit.content import Content
from cockpit.screens.run_actions import RunActionsScreen
from cockpit.state.app_state import AppState
from cockpit.state.formatting import STATES, format_age, format_number, format_percent
from cockpit.widgets.chart import Chart, curve_from_series
from cockpit.widgets.chart_raster import LINE, SECOND, Trace
from cockpit.widgets.servers import Servers
from cockpit.widgets.throttle import Throttle
from engine.protocol.messages import Points, Run, RunChanged, RunRemoved, SeriesQuery, ServiceChanged, Snapshot

SORTS = {
    "newest": lambda run: -run.created,
    "state": lambda run: (list(STATES).index(run.state) if run.state in STATES else 99, -run.created),
    "name": lambda run: (run.name, -run.created),
    "loss": lambda run: run.metrics.get("eval/loss", run.metrics.get("train/loss", float("inf"))),
}
"""The sort orders, in the order in which `t` goes through them."""
HEADINGS = {"state": "state", "run": "name", "loss": "loss", "eval": "loss", "age": "newest"}
"""Column -> the sort order that a click on its heading chooses."""
LOSS = "train/loss"
COLUMNS = {"": 1, "state": 11, "run": 0, "progress": 20, "loss": 6, "eval": 6, "base": 21, "age": 6}
NARROW = {"": 1, "state": 11, "run": 0, "progress": 12, "loss": 6, "age": 6}
"""Heading -> width; 0 takes the remaining width."""


class RunsScreen(RunActionsScreen):
    HELP_TEXT = (
        "All runs of this engine, and the servers of `cockpit serve`. Mark two runs with o to compare their losses."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("p", "pause", "Pause"),
        Binding("p", "continue", "Continue"),
        Binding("x", "stop", "Stop"),
        Binding("r", "resume", "Resume"),
        Binding("d", "delete", "Delete"),
        Binding("t", "sort", "Sort"),
        Binding("o", "overlay", "Overlay"),
        Binding("E", "evaluations", "Results"),
        Binding("w", "worst", "Worst rows", show=False),
        Binding("X", "export", "Export", show=False),
        Binding("j", "cursor(1)", "Down", show=False),
        Binding("k", "cursor(-1)", "Up", show=False),
        Binding("J", "queue(1)", "Later in the queue", show=False),
        Binding("K", "queue(-1)", "Earlier in the queue", show=False),
        Binding("y", "log_scale", "Log", show=False),
        Binding("plus,equals_sign", "zoom(1)", "Zoom in", key_display="+", show=False),
        Binding("minus", "zoom(-1)", "Zoom out", key_display="-", show=False),
        Binding("escape", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    RunsScreen #bar { height: 1; background: $surface; padding: 0 1; }
    RunsScreen #summary { width: 1fr; }
    RunsScreen #filter { width: 30; height: 1; border: none; padding: 0 1; background: $panel; display: none; }
    RunsScreen #filter.-open { display: block; }
    RunsScreen Container { height: 1fr; }
    RunsScreen DataTable { height: auto; max-height: 100%; background: $background; }
    RunsScreen #overlay { height: 1fr; display: none; }
    RunsScreen.-overlay #overlay { display: block; }
    RunsScreen.-low ServerPanel { height: 2; border: none; }
    RunsScreen.-low ServerPanel > .name { display: block; }
    RunsScreen #none { height: 1fr; content-align: center middle; display: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._sort = "newest"
        self._marked: list[str] = []
        self._rows: list[str] = []
        """Run ids in the order of the table."""
        self._selected: str | None = None
        """The run of the dashboard when the cursor was last put on it."""
        self._room = 12
        """Cells for a run's id."""
        self._list_throttle = Throttle(self, self._show, 1.0)
        self._server_throttle = Throttle(self, self._show_servers, 1.0)

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="bar"):
            yield Static(id="summary")
            yield Input(placeholder="filter", id="filter", compact=True)
        with Container():
            yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static("No runs yet: press 3 and launch a profile, or run `cockpit demo`.", id="none")
        yield Chart("loss", id="overlay")
        yield Servers()

    def on_mount(self) -> None:
        self._layout()
        self.query_one(DataTable).focus()

    def on_resize(self) -> None:
        self._layout()

    def on_screen_resume(self) -> None:
        self._show()
        self._show_servers()
        self._follow_selection()

    def _follow_selection(self) -> None:
        """Put the cursor on the run of the dashboard, when that is another one than the last time."""
        selected = self.app.state.selected
        if selected != self._selected and selected in self._rows:
            self._selected = selected
            self.query_one(DataTable).move_cursor(row=self._rows.index(selected), animate=False)

    def _show_servers(self) -> None:
        self.query_one(Servers).show(self.app.state)

    def receive(self, state: AppState, body: object) -> None:
        if not self.is_active:
            return
        if isinstance(body, (Snapshot, RunChanged, RunRemoved)):
            self._list_throttle.request()
        if isinstance(body, (Snapshot, ServiceChanged)):
            self._server_throttle.request()
        if isinstance(body, Points) and body.run in self._marked:
            self.query_one("#overlay", Chart).append(body.run, body.values.get(LOSS, []))

    @property
    def current_run(self) -> Run | None:
        at = self.query_one(DataTable).cursor_row
        return self.app.state.runs.get(self._rows[at]) if 0 <= at < len(self._rows) else None

    @property
    def _narrow(self) -> bool:
        return self.app.size.width < 100

    # ── the list ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _layout(self) -> None:
        """Choose the columns for the current width, and fill them."""
        table = self.query_one(DataTable)
        table.clear(columns=True)
        columns = NARROW if self._narrow else COLUMNS
        self._room = max(12, self.app.size.width - sum(cells + 2 for cells in columns.values()) - 2)
        for name, cells in columns.items():
            table.add_column(name, width=cells or self._room, key=name or "mark")
        self._rows = []
        self._show()

    def _show(self) -> None:
        """Update the table: the changed cells, or all rows when the rows or their order have changed."""
        table = self.query_one(DataTable)
        if not table.columns:
            return
        words = self.query_one("#filter", Input).value.strip().lower()
        everything = list(self.app.state.runs.values())
        runs = sorted((run for run in everything if words in _search_text(run)), key=SORTS[self._sort])
        ids = [run.id for run in runs]
        cells = [self._cells(run) for run in runs]
        if ids != self._rows:
            selected = self.current_run
            table.clear()
            for run, row in zip(runs, cells, strict=True):
                table.add_row(*[row[str(key.value)] for key in table.columns], key=run.id)
            first, self._rows = not self._rows, ids
            self.refresh_bindings()
            if selected is not None and selected.id in ids:
                table.move_cursor(row=ids.index(selected.id), animate=False)
            elif first:
                self._follow_selection()
        else:
            changed = False
            for at, row in enumerate(cells):
                for column, key in enumerate(table.columns):
                    place, cell = Coordinate(at, column), row[str(key.value)]
                    if not cell.is_same(table.get_cell_at(place)):
                        table.update_cell_at(place, cell)
                        changed = True
            if changed:
                self.refresh_bindings()
        self.query_one("#none").display = not everything
        live = sum(run.state in ("preparing", "running", "paused", "stopping") for run in everything)
        count = f"{len(runs)} of {len(everything)}" if words else f"{len(everything)}"
        self.query_one("#summary", Static).update(
            f"{count} run{'' if len(everything) == 1 else 's'} · {live} live · sorted by {self._sort}", layout=False
        )

    def _cells(self, run: Run) -> dict[str, Content]:
        mark, colour = STATES.get(run.state, ("·", "$text"))
        share = run.step / run.max_steps if run.max_steps else 0.0
        length = 6 if self._narrow else 8
        full = round(share * length)
        at = self._marked.index(run.id) if run.id in self._marked else -1
        steps = format_percent(share) if self._narrow else f"{run.step:,}/{run.max_steps or '?'}"
        return {
            "mark": Content.styled("◆◇"[at] if at >= 0 else " ", "$accent" if at == 0 else "$success"),
            "state": Content.styled(f"{mark} {run.state} {run.position or ''}".rstrip(), colour),
            "run": Content(_cut(run.id, self._room)),
            "progress": Content.assemble(("━" * full, "$accent"), ("─" * (length - full), "$primary 50%"), " ", steps),
            "loss": Content(_metric(run, LOSS)),
            "eval": Content(_metric(run, "eval/loss")),
            "base": Content(_cut(run.base.rsplit("/", 1)[-1], 21)),
            "age": Content(f"{format_age(run.created):>6}"),
        }

    @on(DataTable.RowHighlighted)
    def _row_highlighted(self) -> None:
        self.refresh_bindings()  # what can be done depends on the run's state

    @on(DataTable.HeaderSelected)
    def _header_selected(self, event: DataTable.HeaderSelected) -> None:
        """A click on a column's heading sorts by it."""
        self._sort = HEADINGS.get(str(event.column_key.value), self._sort)
        self._show()

    @on(DataTable.RowSelected)
    async def _row_selected(self) -> None:
        await self.action_open()

    async def action_open(self) -> None:
        run = self.current_run
        if run is not None:
            await self.app.open_run(run.id)

    def action_cursor(self, by: int) -> None:
        table = self.query_one(DataTable)
        table.move_cursor(row=table.cursor_row + by, animate=False)

    def action_sort(self) -> None:
        names = list(SORTS)
        self._sort = names[(names.index(self._sort) + 1) % len(names)]
        self._show()

    # ── the filter ────────────────────────────────────────────────────────────────────────────────────────────────

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.add_class("-open")
        field.focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self) -> None:
        self._show()

    @on(Input.Submitted, "#filter")
    def _filter_submitted(self, event: Input.Submitted) -> None:
        event.input.set_class(bool(event.value), "-open")
        self.query_one(DataTable).focus()

    async def action_leave(self) -> None:
        """Esc closes the filter, then the overlay, then the screen."""
        field = self.query_one("#filter", Input)
        if field.has_class("-open"):
            field.value = ""
            field.remove_class("-open")
            self.query_one(DataTable).focus()
        elif self._marked:
            self._marked = []
            self._overlay()
            self._show()
        else:
            await self.app.action_back()

    # ── comparison ────────────────────────────────────────────────────────────────────────────────────────────────

    def action_overlay(self) -> None:
        """Mark the selected run. A third mark replaces the first."""
        run = self.current_run
        if run is None:
            return
        self._marked = (
            [name for name in self._marked if name != run.id]
            if run.id in self._marked
            else [*self._marked, run.id][-2:]
        )
        self._show()
        self._overlay()

    @work(exclusive=True, group="overlay")
    async def _overlay(self) -> None:
        self.set_class(bool(self._marked), "-overlay")
        traces = {}
        for at, run in enumerate(self._marked):
            reply = await self.app.ask("series", SeriesQuery(run=run, names=[LOSS], points=1000))
            if reply is None:
                return
            second = at == 1
            traces[run] = Trace(
                curve_from_series(reply.series[0]), SECOND if second else LINE, band=not second, dashed=second
            )
        if len(traces) == 2:
            for trace in traces.values():
                trace.band = False
        self.query_one("#overlay", Chart).load(traces)

    def action_log_scale(self) -> None:
        self.query_one("#overlay", Chart).toggle_log()

    def action_zoom(self, direction: int) -> None:
        self.query_one("#overlay", Chart).zoom_by(direction)


def _search_text(run: Run) -> str:
    return " ".join((run.id, run.name, run.state, run.base, run.method, run.adapter)).lower()


def _metric(run: Run, name: str) -> str:
    return format_number(run.metrics[name]) if name in run.metrics else "–"


def _cut(text: str, cells: int) -> str:
    """The text cut to at most `cells` cells; a wide character takes two."""
    while cell_len(text) > cells:
        text = text[:-2] + "…"
    return text
