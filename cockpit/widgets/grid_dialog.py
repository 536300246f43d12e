"""A dialog with the runs of a grid: a table, and their settings and metric as parallel coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from cockpit.connection.engine_app import EngineApp
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.grid_results import GridRow, choose_measure, list_rows, short_names
from cockpit.profiles.grids import Grid
from cockpit.widgets.canvas import Canvas
from cockpit.widgets.parallel import Axis, draw, place_metric, place_values

POLL = 1.0
"""Seconds between two looks at the runs."""


class GridDialog(ModalScreen[str | None]):
    """Dismissed with the id of a run to open, or with None."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    GridDialog { align: center middle; }
    GridDialog > #dialog { width: 96%; height: 92%; border: round $accent; background: $surface; padding: 0 1; }
    GridDialog #heading { height: 1; text-style: bold; padding: 0 1; }
    GridDialog OptionList, GridDialog OptionList:focus {
        height: auto; max-height: 40%; border: none; padding: 0; background: $surface; text-wrap: nowrap;
        text-overflow: ellipsis; scrollbar-size-vertical: 1;
    }
    GridDialog Canvas { height: 1fr; margin-top: 1; }
    """
    BINDINGS = [
        Binding("escape,q", "dismiss(None)", "Close"),
        Binding("j", "cursor(1)", "Down", show=False),
        Binding("k", "cursor(-1)", "Up", show=False),
    ]

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._grid = grid
        self._rows: list[GridRow] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog") as box:
            box.border_title = Content(tr("Grid {name} of {profile}", name=self._grid.name, profile=self._grid.profile))
            box.border_subtitle = tr("↑↓ moves · Enter opens the run · Esc closes")
            yield Static(id="heading")
            yield OptionList(id="runs")
            yield Canvas(id="picture")

    def on_mount(self) -> None:
        self.set_interval(POLL, self._refresh_rows)
        self.call_after_refresh(self._refresh_rows, force=True)

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._refresh_rows, force=True)

    def _refresh_rows(self, force: bool = False) -> None:
        rows = list_rows(self._grid, self.app.state.runs)
        if rows == self._rows and not force:
            return
        chosen = self._chosen
        listing = self.query_one(OptionList)
        self._rows = rows
        names = short_names(list(self._grid.axes))
        self._measure, self._rises = choose_measure(self._grid, self.app.state.runs)
        widths = {axis: max(len(name), *map(len, self._grid.axes[axis])) for axis, name in names.items()}
        head = "  ".join(f"{name:<{widths[axis]}}" for axis, name in names.items())
        room = max((len(row.run) for row in rows), default=3)
        self.query_one("#heading", Static).update(
            Content(f"  {head}  {self._measure:>10}  {'state':<9}  {'step':>8}  {'run':<{room}}")
        )
        with self.prevent(OptionList.OptionHighlighted):
            listing.clear_options()
            listing.add_options([Option(self._line(at, row, widths)) for at, row in enumerate(rows)])
            places = [row.run for row in rows]
            listing.highlighted = places.index(chosen) if chosen in places else 0 if rows else None
        listing.focus()
        self._draw()

    def _line(self, at: int, row: GridRow, widths: dict[str, int]) -> Content:
        best = at == 0 and row.value is not None
        settings = "  ".join(f"{row.settings.get(axis, ''):<{width}}" for axis, width in widths.items())
        value = "–" if row.value is None else f"{row.value:.4g}"
        mark = ("★ ", "$accent") if best else ("  ", "")
        facts = f"  {row.state:<9}  {row.step:>8,}  {row.run}"
        return Content.assemble(mark, (settings, "bold" if best else ""), f"  {value:>10}", (facts, "dim"))

    @property
    def _chosen(self) -> str:
        at = self.query_one(OptionList).highlighted
        return self._rows[at].run if at is not None and at < len(self._rows) else ""

    def _draw(self) -> None:
        canvas = self.query_one(Canvas)
        width, height = canvas.content_size
        if width < 20 or height < 4 or not self._rows:
            canvas.paint([])
            return
        heights = {axis: place_values(values) for axis, values in self._grid.axes.items()}
        names = short_names(list(self._grid.axes))
        axes = [Axis(names[axis], [(value, at) for value, at in places.items()]) for axis, places in heights.items()]
        values = [row.value for row in self._rows]
        known = [value for value in values if value is not None]
        metric = place_metric(values, self._rises)
        best, worst = (max, min) if self._rises else (min, max)
        ticks = [(f"{best(known):.4g}", 1.0), (f"{worst(known):.4g}", 0.0)] if len(set(known)) > 1 else []
        axes.append(Axis(self._measure, ticks or [(f"{value:.4g}", 0.5) for value in known[:1]]))
        lines = [
            [*(heights[axis].get(row.settings.get(axis, "")) for axis in heights), metric[at]]
            for at, row in enumerate(self._rows)
        ]
        chosen = self.query_one(OptionList).highlighted
        canvas.paint(draw(axes, lines, -1 if chosen is None else chosen, width, height))

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self._draw()

    @on(OptionList.OptionSelected)
    def _selected(self) -> None:
        if self._chosen in self.app.state.runs:
            self.dismiss(self._chosen)

    def action_cursor(self, by: int) -> None:
        listing = self.query_one(OptionList)
        (listing.action_cursor_down if by > 0 else listing.action_cursor_up)()
