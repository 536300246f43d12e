"""Charts of curves over steps, drawn live in braille, and small graphs of recent values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cockpit.content import Content
from cockpit.state.formatting import format_number
from cockpit.widgets import chart_notes as notes
from cockpit.widgets import chart_raster as raster
from cockpit.widgets.canvas import Canvas
from cockpit.widgets.curve import Bucket, Curve
from cockpit.widgets.throttle import Throttle
from engine.protocol.messages import Series

FRAME = 0.25
"""Seconds between two frames of a growing chart."""
MAX_ZOOM = 10
"""How many times the visible steps can be halved."""


def curve_from_series(series: Series) -> Curve:
    """The curve of a series that the engine has reduced to buckets."""
    columns = zip(series.first_step, series.last_step, series.low, series.high, series.last, strict=True)
    return Curve([Bucket(*column) for column in columns])


class Chart(Canvas, can_focus=True):
    """Curves by name. `load` and `mark` set them, `append` extends one; the picture is redrawn automatically, at most
    four times a second."""

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
        """The last step of the run; 0 while it is not known."""
        self._title, self._subtitle = Content(""), ""
        self._edge = 0
        self._range: tuple[float, float] | None = None
        self._throttle = Throttle(self, self.draw, FRAME)

    # ── content ──────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, traces: dict[str, raster.Trace], limit: int = 0) -> None:
        """Replace all curves."""
        self.traces, self.limit = traces, limit
        self.marks, self._edge, self._range = {}, 0, None
        self.draw()

    def mark(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Add points that are drawn as symbols. A later point at the same step replaces the earlier one."""
        self.marks_name = name
        self.marks |= dict(points)
        self._throttle.request()

    def annotate(self, events: tuple[notes.Mark, ...], bounds: tuple[notes.Bound, ...]) -> None:
        """Set the annotations: changes at a step, and bounds."""
        if (events, bounds) != (self.events, self.bounds):
            self.events, self.bounds = events, bounds
            self._throttle.request()

    def append(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Append points to the curve `name`. Points at or before its newest step are ignored."""
        if name not in self.traces:
            self.traces[name] = raster.Trace(Curve())
        curve = self.traces[name].curve
        if sum(curve.append(step, value) for step, value in points):
            self._throttle.request()

    def toggle_log(self) -> None:
        self.logarithmic, self._range = not self.logarithmic, None
        self.draw()

    def zoom_by(self, direction: int) -> None:
        """+1 shows only the newer half of the visible steps, -1 twice as many."""
        self.zoom = max(0, min(MAX_ZOOM, self.zoom + direction))
        self._range = None
        self.draw()

    def span(self) -> tuple[int, int]:
        """The first and the last visible step."""
        curves = [trace.curve for trace in self.traces.values() if len(trace.curve)]
        first = min((curve.first for curve in curves), default=0)
        last = max((curve.last for curve in curves), default=0)
        first = 0 if first <= max(1, last // 20) else first
        self._edge = raster.extend_edge(self._edge or last, first, last, self.limit)
        return self._edge - max(4, (self._edge - first) >> self.zoom) if self.zoom else first, self._edge

    # ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def draw(self) -> None:
        self._set_titles()
        width, height = self.content_size
        if not width or not height:
            return
        first, last = self.span()
        marks = sorted(self.marks.items())
        value_range = raster.extremes(self.traces.values(), marks, first, last, self.logarithmic)
        if value_range is None:
            waiting = "no points yet".center(width)[:width]
            blank = (" " * width, bytes(width))
            line = (waiting, bytes([raster.LABEL]) * width)
            self.paint([line if row == height // 2 else blank for row in range(height)])
            return
        self._range = raster.stable_range(self._range, *notes.widen(*value_range, self.bounds, self.logarithmic))
        view = raster.View(first, last, *self._range, self.logarithmic)
        note = partial(notes.annotate, marks=self.events, bounds=self.bounds, view=view)
        self.paint(raster.chart(list(self.traces.values()), marks, view, width, height, note))

    def on_resize(self) -> None:
        self.draw()

    def _set_titles(self) -> None:
        """Set the title with the legend (with shapes, for NO_COLOR) and the subtitle with the scale. They contain
        nothing that changes with every point: setting a title repaints the whole widget, even when it is the same."""
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
            parts.append(Content.styled(f"◆ {self.marks_name} {format_number(newest)}", "$error"))
        title = Content("  ").join(parts)
        notes = ["log"] if self.logarithmic else []
        notes += [f"newest 1/{2**self.zoom}"] if self.zoom else []
        subtitle = " · ".join(notes)
        if not title.is_same(self._title) or subtitle != self._subtitle:
            self._title, self._subtitle = title, subtitle
            self.border_title, self.border_subtitle = title, subtitle


class Graph(Canvas):
    """The newest values of one quantity, one for each dot column. `top` is the value at the upper edge."""

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
