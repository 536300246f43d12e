"""The chart: curves over steps, drawn live in braille, and the small graph of the last minutes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from textual.content import Content

from cockpit.state.formatting import number
from cockpit.widgets import chart_notes as notes
from cockpit.widgets import chart_raster as raster
from cockpit.widgets.canvas import Canvas
from cockpit.widgets.curve import Bucket, Curve
from cockpit.widgets.throttle import Pace
from engine.protocol.messages import Series

FRAME = 0.25
"""Seconds between two frames of a chart whose curves grow."""
DEEPEST = 10
"""Zoom halves the shown steps this many times at most."""


def curve_of(series: Series) -> Curve:
    """The engine's reduced series as a curve."""
    columns = zip(series.first_step, series.last_step, series.low, series.high, series.last, strict=True)
    return Curve([Bucket(*column) for column in columns])


class Chart(Canvas, can_focus=True):
    """Curves by name. `load` and `mark` set them, `append` lets one grow; the picture follows by itself, at most four times a second."""

    DEFAULT_CSS = """
    Chart { border: round $primary; border-title-color: $accent; border-subtitle-color: $text-muted; min-height: 4; }
    Chart:focus { border: round $accent; }
    """

    def __init__(self, title: str, *, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self.heading = title
        self.traces: dict[str, raster.Trace] = {}
        self.marks: dict[int, float] = {}
        self.marks_name = ""
        self.events: tuple[notes.Mark, ...] = ()
        self.bounds: tuple[notes.Bound, ...] = ()
        self.logarithmic, self.zoom = False, 0
        self.limit = 0
        """The last step there will be, as far as is known; 0 if not."""
        self._title, self._subtitle = Content(""), ""
        self._edge = 0
        self._range: tuple[float, float] | None = None
        self._pace = Pace(self, self.draw, FRAME)

    # ── what it shows ─────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, traces: dict[str, raster.Trace], limit: int = 0) -> None:
        """Replace all curves."""
        self.traces, self.limit = traces, limit
        self.marks, self._edge, self._range = {}, 0, None
        self.draw()

    def mark(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Points with a shape of their own; a later one at the same step replaces the earlier."""
        self.marks_name = name
        self.marks |= dict(points)
        self._pace.ask()

    def annotate(self, events: tuple[notes.Mark, ...], bounds: tuple[notes.Bound, ...]) -> None:
        """What stands in the picture beside the curves: what changed at a step, and values to reach."""
        if (events, bounds) != (self.events, self.bounds):
            self.events, self.bounds = events, bounds
            self._pace.ask()

    def append(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """New points of the curve `name`; those at or before its newest step are known already."""
        if name not in self.traces:
            self.traces[name] = raster.Trace(Curve())
        curve = self.traces[name].curve
        if sum(curve.append(step, value) for step, value in points):
            self._pace.ask()

    def toggle_log(self) -> None:
        self.logarithmic, self._range = not self.logarithmic, None
        self.draw()

    def zoom_by(self, direction: int) -> None:
        """+1 shows the newer half of the steps, -1 twice as many."""
        self.zoom = max(0, min(DEEPEST, self.zoom + direction))
        self._range = None
        self.draw()

    def span(self) -> tuple[int, int]:
        """First and last step shown."""
        curves = [trace.curve for trace in self.traces.values() if len(trace.curve)]
        first = min((curve.first for curve in curves), default=0)
        last = max((curve.last for curve in curves), default=0)
        first = 0 if first <= max(1, last // 20) else first
        self._edge = raster.grow(self._edge or last, first, last, self.limit)
        return self._edge - max(4, (self._edge - first) >> self.zoom) if self.zoom else first, self._edge

    # ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def draw(self) -> None:
        self._label()
        width, height = self.content_size
        if not width or not height:
            return
        first, last = self.span()
        marks = sorted(self.marks.items())
        found = raster.extremes(self.traces.values(), marks, first, last, self.logarithmic)
        if found is None:
            waiting = "no points yet".center(width)[:width]
            blank = (" " * width, bytes(width))
            line = (waiting, bytes([raster.LABEL]) * width)
            self.paint([line if row == height // 2 else blank for row in range(height)])
            return
        self._range = raster.settle(self._range, *notes.widened(*found, self.bounds, self.logarithmic))
        view = raster.View(first, last, *self._range, self.logarithmic)
        note = partial(notes.noted, marks=self.events, bounds=self.bounds, view=view)
        self.paint(raster.chart(list(self.traces.values()), marks, view, width, height, note))

    def on_resize(self) -> None:
        self.draw()

    def _label(self) -> None:
        """Title with the legend (shapes too, for NO_COLOR), subtitle with the scale. Nothing that changes with every point: setting a
        title repaints the whole widget, even to what it was."""
        parts = [Content(self.heading)]
        colours = {raster.LINE: "$accent", raster.SECOND: "$success"}
        room = self.size.width >= 44
        for name, trace in self.traces.items() if room else ():
            if len(self.traces) > 1:
                parts.append(Content.assemble(("╍╍ " if trace.dashed else "━━ ", colours[trace.role]), (name, "$text")))
        if room and any(trace.band for trace in self.traces.values()):
            parts += [Content.styled("━ smoothed", "$accent"), Content.styled("⣿ measured", "$primary")]
        if room and self.marks:
            newest = self.marks[max(self.marks)]
            parts.append(Content.styled(f"◆ {self.marks_name} {number(newest)}", "$error"))
        title = Content("  ").join(parts)
        notes = ["log"] if self.logarithmic else []
        notes += [f"newest 1/{2**self.zoom}"] if self.zoom else []
        subtitle = " · ".join(notes)
        if not title.is_same(self._title) or subtitle != self._subtitle:
            self._title, self._subtitle = title, subtitle
            self.border_title, self.border_subtitle = title, subtitle


class Graph(Canvas):
    """The newest values of one figure, one a dot column; `top` is the value at the upper edge."""

    DEFAULT_CSS = "Graph { height: 1fr; }"

    def __init__(self, *, id: str | None = None, top: float = 100.0) -> None:  # noqa: A002
        super().__init__(id=id)
        self._top = top
        self._values: Sequence[float] = ()

    def show(self, values: Sequence[float]) -> None:
        self._values = values
        width, height = self.content_size
        if width and height:
            self.paint(raster.spark(values, width, height, self._top))

    def on_resize(self) -> None:
        self.show(self._values)
