"""The list of runs, with sorting, a filter, actions on one run or several, and the losses of marked runs in a chart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Input, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import opens_dialog
from cockpit.screens.run_groups import RunGroupsScreen
from cockpit.screens.run_overlay import LOSS
from cockpit.state.app_state import AppState
from cockpit.state.formatting import STATES
from cockpit.state.run_filter import FilterError, RunFilter, parse_filter
from cockpit.state.run_groups import RunGroup, describe_list
from cockpit.widgets.chart import Chart
from cockpit.widgets.run_preview import RunPreview
from cockpit.widgets.run_table import COLUMNS, USUAL, Look, fit_columns, write_group, write_row
from cockpit.widgets.servers import Servers
from cockpit.widgets.throttle import Throttle
from engine.protocol.messages import Points, Run, RunChanged, RunRemoved, ServiceChanged, Snapshot

SORTS: dict[str, Callable[[Run], Any]] = {
    "newest": lambda run: -run.created,
    "state": lambda run: (list(STATES).index(run.state) if run.state in STATES else 99, run.position, -run.created),
    "name": lambda run: (run.name, -run.created),
    "loss": lambda run: run.metrics.get("eval/loss", run.metrics.get("train/loss", float("inf"))),
    "eval": lambda run: run.metrics.get("eval/loss", float("inf")),
    "lr": lambda run: -run.learning_rate,
}
"""The sort orders, in the order in which `t` goes through them. Pinned runs come first in each."""
WIDE, BESIDE = 150, 120
"""Cells from which on the preview is shown unless it is hidden, and from which on it is beside the list."""


class RunsScreen(RunGroupsScreen):
    HELP_TEXT = """\
All runs of this engine, and the servers of `cockpit serve`. Mark runs with o to draw their losses in one chart;
m then draws all their metrics, C shows how they differ.
/ filters by words and fields: state:failed,lost lr:>1e-4 tag:paper group:sweep age:<7d -base:qwen eval/accuracy:>=0.9
G shows them by group; Enter or z folds one."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("p", "pause", "Pause"),
        Binding("p", "continue", "Continue"),
        Binding("x", "stop", "Stop"),
        Binding("r", "resume", "Resume"),
        Binding("e", "extend", "Extend"),
        Binding("f", "from_step", "From step"),
        Binding("d", "delete", "Delete"),
        Binding("space", "choose", "Choose"),
        Binding("t", "sort", "Sort"),
        Binding("v", "preview", "Preview"),
        Binding("c", "columns", "Columns"),
        Binding("o", "overlay", "Overlay"),
        Binding("m", "metrics", "Metrics"),
        Binding("C", "compare", "Compare"),
        Binding("E", "evaluations", "Results"),
        Binding("g", "grids", "Grids"),
        Binding("G", "by_group", "By group"),
        Binding("z", "fold", "Fold"),
        Binding("P", "priority", "Priority"),
        Binding("u", "group", "Group", show=False),
        Binding("Z", "fold_all", "Fold all", show=False),
        Binding("L", "log", "Log", show=False),
        Binding("F", "fork", "Fork", show=False),
        Binding("number_sign", "tags", "Tags", key_display="#", show=False),
        Binding("n", "note", "Note", show=False),
        Binding("asterisk", "pin", "Pin", key_display="*", show=False),
        Binding("D", "clean", "Disk", show=False),
        Binding("A", "choose_all", "Choose all", show=False),
        Binding("w", "worst", "Worst rows", show=False),
        Binding("X", "export", "Export", show=False),
        Binding("j", "cursor(1)", "Down", show=False),
        Binding("k", "cursor(-1)", "Up", show=False),
        Binding("J", "queue(1)", "Later in the queue", show=False),
        Binding("K", "queue(-1)", "Earlier in the queue", show=False),
        Binding("y", "log_scale", "Log scale", show=False),
        Binding("plus,equals_sign", "zoom(1)", "Zoom in", key_display="+", show=False),
        Binding("minus", "zoom(-1)", "Zoom out", key_display="-", show=False),
        Binding("escape", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    RunsScreen #bar { height: 1; background: $surface; padding: 0 1; }
    RunsScreen #summary { width: 1fr; }
    RunsScreen #filter {
        width: 44; max-width: 60%; height: 1; border: none; padding: 0 1; background: $panel; display: none;
    }
    RunsScreen #filter.-open { display: block; }
    RunsScreen #middle { height: 1fr; layout: horizontal; }
    RunsScreen #middle.-below { layout: vertical; }
    RunsScreen #listing { width: 3fr; height: 1fr; }
    RunsScreen RunPreview { width: 2fr; height: 1fr; display: none; }
    RunsScreen.-preview RunPreview { display: block; }
    RunsScreen #middle.-below #listing, RunsScreen #middle.-below RunPreview { width: 1fr; }
    RunsScreen #middle.-below RunPreview { border-left: none; border-top: solid $primary 50%; }
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
        self._filter = RunFilter()
        self._wrong = ""
        """Why the filter is not understood; all runs are listed then."""
        self._rows: list[str] = []
        """Run ids and the keys of groups, in the order of the table."""
        self._selected: str | None = None
        """The run of the dashboard when the cursor was last put on it."""
        self._names: list[str] = []
        """The columns that are shown, after the mark."""
        self._room = 12
        """Cells for a run's id."""
        self._narrow = False
        self._list_throttle = Throttle(self, self.show_list, 1.0)
        self._server_throttle = Throttle(self, self._show_servers, 1.0)

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="bar"):
            yield Static(id="summary")
            yield Input(placeholder=tr("words, state:failed lr:>1e-4 tag:…"), id="filter", compact=True)
        with Container(id="middle"):
            with Container(id="listing"):
                yield DataTable(cursor_type="row", zebra_stripes=True)
            yield RunPreview()
        yield Static(tr("No runs yet: press 3 and launch a profile, or run `cockpit demo`."), id="none")
        yield Chart(tr("loss"), smoothing=0.6, id="overlay")
        yield Servers()

    def on_mount(self) -> None:
        settings = self.app.settings
        sort, words = settings.get("runs.sort", self._sort), settings.get("runs.filter", "")
        self._sort = sort if sort in SORTS else self._sort
        field = self.query_one("#filter", Input)
        with self.prevent(Input.Changed):
            field.value = words
        field.set_class(bool(words), "-open")
        self._read_filter(words)
        self._layout()
        self.query_one(DataTable).focus()

    def on_resize(self) -> None:
        self._layout()

    def on_screen_resume(self) -> None:
        self.show_list()
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
        if isinstance(body, Points) and LOSS in body.values:
            if body.run in self.marked:
                self.query_one("#overlay", Chart).append(body.run, body.values[LOSS])
            self.query_one(RunPreview).append(body.run, body.values[LOSS])

    @property
    def _current_line(self) -> str:
        """The run's id or the group's key under the cursor; empty without one."""
        at = self.query_one(DataTable).cursor_row
        return self._rows[at] if 0 <= at < len(self._rows) else ""

    @property
    def current_group(self) -> RunGroup | None:
        return self.groups.get(self._current_line)

    def show_line(self, key: str) -> None:
        if key in self._rows:
            self.query_one(DataTable).move_cursor(row=self._rows.index(key), animate=False)

    @property
    def current_run(self) -> Run | None:
        return self.app.state.runs.get(self._current_line)

    # ── the list ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _layout(self) -> None:
        """Choose the columns for the current width, and fill them."""
        width = self.app.size.width
        shown = self.app.settings.get("runs.preview" if width >= WIDE else "runs.preview_narrow", width >= WIDE)
        self.set_class(shown, "-preview")
        self.query_one("#middle").set_class(width < BESIDE, "-below")
        table, here = self.query_one(DataTable), self._current_line
        table.clear(columns=True)
        room = width * 3 // 5 if shown and width >= BESIDE else width
        self._narrow = room < 100
        longest = max(map(len, self.app.state.runs), default=40)
        columns, self._room = fit_columns(
            self.app.settings.get("runs.columns", list(USUAL)), room, self._narrow, max(40, longest)
        )
        table.add_column("", width=1, key="mark")
        for name, cells in columns.items():
            table.add_column(tr(name), width=cells or self._room, key=name)
        self._names, self._rows = list(columns), []
        self.show_list()
        self.show_line(here)

    def show_list(self) -> None:
        """Update the table: the changed cells, or all rows when the rows or their order have changed."""
        table = self.query_one(DataTable)
        if not table.columns:
            return
        everything = list(self.app.state.runs.values())
        order = SORTS[self._sort]
        runs = sorted(filter(self._filter.matches, everything), key=lambda run: (not run.pinned, order(run)))
        lines = self.list_lines(runs)
        ids = [line.key if isinstance(line, RunGroup) else line.id for line in lines]
        self.chosen &= {run.id for run in everything}
        self.forget_marks()
        look = Look(tuple(self.marked), frozenset(self.chosen), self._room, self._narrow, self.app.current_theme.dark)
        cells = [
            write_group(line, self._names, look)
            if isinstance(line, RunGroup)
            else write_row(line, self._names, look, indent=self.by_group and bool(line.group))
            for line in lines
        ]
        if ids != self._rows:
            selected = self._current_line
            table.clear()
            for key, row in zip(ids, cells, strict=True):
                table.add_row(*row, key=key)
            first, self._rows = not self._rows, ids
            self.refresh_bindings()
            if selected in ids:
                table.move_cursor(row=ids.index(selected), animate=False)
            elif first:
                self._follow_selection()
        else:
            changed = False
            for at, row in enumerate(cells):
                for column, cell in enumerate(row):
                    place = Coordinate(at, column)
                    if not cell.is_same(table.get_cell_at(place)):
                        table.update_cell_at(place, cell)
                        changed = True
            if changed:
                self.refresh_bindings()
        self.query_one("#none").display = not everything
        self.query_one("#middle").display = bool(everything)
        self._show_summary(everything, len(runs))
        self.query_one(RunPreview).show_run(self.current_run)

    def _show_summary(self, everything: list[Run], shown: int) -> None:
        if self._wrong:
            text = Content.styled(f"✗ {self._wrong}", "$error")
        else:
            of_all = shown if self._filter.tests else None
            text = Content(describe_list(everything, of_all, len(self.groups), self._sort, len(self.chosen)))
        self.query_one("#summary", Static).update(text, layout=False)

    @on(DataTable.RowHighlighted)
    def _row_highlighted(self) -> None:
        self.refresh_bindings()  # what can be done depends on the run's state
        self.query_one(RunPreview).show_run(self.current_run)

    @on(DataTable.HeaderSelected)
    def _header_selected(self, event: DataTable.HeaderSelected) -> None:
        """A click on a column's heading sorts by it."""
        column = COLUMNS.get(str(event.column_key.value))
        self._sort_by(column.sort if column and column.sort else self._sort)

    @on(DataTable.RowSelected)
    async def _row_selected(self) -> None:
        await self.action_open()

    async def action_open(self) -> None:
        run = self.current_run
        if run is not None:
            await self.app.open_run(run.id)
        elif self.current_group is not None:
            self.action_fold()

    def action_cursor(self, by: int) -> None:
        table = self.query_one(DataTable)
        table.move_cursor(row=table.cursor_row + by, animate=False)

    def action_sort(self) -> None:
        names = list(SORTS)
        self._sort_by(names[(names.index(self._sort) + 1) % len(names)])

    def _sort_by(self, order: str) -> None:
        self._sort = order
        self.app.settings.set("runs.sort", order)
        self.show_list()

    def action_preview(self) -> None:
        """Show or hide the pane; wide and narrow terminals each remember."""
        wide = self.app.size.width >= WIDE
        self.app.settings.set("runs.preview" if wide else "runs.preview_narrow", not self.has_class("-preview"))
        self._layout()

    @opens_dialog
    @work(group="columns")
    async def action_columns(self) -> None:
        from cockpit.widgets.columns_dialog import ColumnsDialog

        now = self.app.settings.get("runs.columns", list(USUAL))
        chosen = await self.app.push_screen_wait(ColumnsDialog(now))
        if chosen is not None:
            self.app.settings.set("runs.columns", chosen or list(USUAL))
            self._layout()

    def action_choose(self) -> None:
        """Choose the run under the cursor, or not, and go to the next. On a group's heading: all of its runs."""
        run, group = self.current_run, self.current_group
        if run is not None or group is not None:
            ids = {each.id for each in group.runs} if group else {run.id} if run else set()
            self.chosen = self.chosen - ids if self.chosen >= ids else self.chosen | ids
            self.action_cursor(1)
            self.show_list()
            self.refresh_bindings()

    def action_choose_all(self) -> None:
        """Choose all that are listed; none when they are chosen."""
        listed = {run.id for group in self.groups.values() for run in group.runs} | set(self._rows) - set(self.groups)
        self.chosen = set() if self.chosen >= listed else listed
        self.show_list()
        self.refresh_bindings()

    # ── the filter ────────────────────────────────────────────────────────────────────────────────────────────────

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.add_class("-open")
        field.focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._read_filter(event.value)
        self.show_list()

    def _read_filter(self, text: str) -> None:
        try:
            self._filter, self._wrong = parse_filter(text), ""
        except FilterError as error:
            self._filter, self._wrong = RunFilter(), str(error)

    @on(Input.Submitted, "#filter")
    def _filter_submitted(self, event: Input.Submitted) -> None:
        if self._wrong:
            return
        event.input.set_class(bool(event.value.strip()), "-open")
        self.app.settings.set("runs.filter", event.value.strip())
        self.query_one(DataTable).focus()

    async def action_leave(self) -> None:
        """Esc closes the filter, then the choice, then the overlay, then the screen."""
        field = self.query_one("#filter", Input)
        if field.has_class("-open"):
            field.value = ""
            field.remove_class("-open")
            self.app.settings.set("runs.filter", "")
            self.query_one(DataTable).focus()
        elif self.chosen:
            self.chosen = set()
            self.show_list()
            self.refresh_bindings()
        elif self.marked:
            self.marked = []
            self.show_overlay()
            self.show_list()
        else:
            await self.app.action_back()
