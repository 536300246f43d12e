"""Charts of curves, drawn live in braille, and small graphs of recent values."""

from __future__ import annotations

from collections.abc import Mapping as Named
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from cockpit.content import Content
from cockpit.keymap import named
from cockpit.language.translate import tr
from cockpit.state.formatting import format_number
from cockpit.widgets import chart_axes as axes
from cockpit.widgets import chart_notes as notes
from cockpit.widgets import chart_raster as raster
from cockpit.widgets.canvas import Canvas
from cockpit.widgets.chart_columns import SMOOTHINGS
from cockpit.widgets.chart_readout import describe_position, share_mapping
from cockpit.widgets.chart_window import Window
from cockpit.widgets.curve import Bucket, Curve
from cockpit.widgets.throttle import Throttle
from engine.protocol.messages import Series

FRAME = 0.25
"""Seconds between two frames of a growing chart."""


def curve_from_series(series: Series) -> Curve:
    """The curve of a series that the engine has reduced to buckets."""
    means, counts = series.mean or series.last, series.count or [1] * len(series.last)
    columns = zip(series.first_step, series.last_step, series.low, series.high, means, counts, strict=True)
    return Curve([Bucket(*column) for column in columns])


@named
class Chart(Canvas, can_focus=True):
    """Curves by name. `load` and `mark` set them, `append` extends one; the picture is redrawn automatically, at most
    four times a second."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "cross(-1)", "Crosshair left", show=False),
        Binding("right", "cross(1)", "Crosshair right", show=False),
        Binding("shift+left", "pan(-1)", "Earlier", show=False),
        Binding("shift+right", "pan(1)", "Later", show=False),
        Binding("space", "range", "Range", show=False),
        Binding("home", "whole", "All of it", show=False),
        Binding("end", "follow", "Follow", show=False),
        Binding("comma", "smooth(-1)", "Smooth less", key_display=",", show=False),
        Binding("full_stop", "smooth(1)", "Smooth more", key_display=".", show=False),
        Binding("i", "x_axis", "X axis", show=False),
        Binding("escape", "clear", "No crosshair", show=False),
    ]
    DEFAULT_CSS = """
    Chart { border: round $primary; border-title-color: $accent; border-subtitle-color: $text-muted; min-height: 4; }
    Chart:focus { border: round $accent; }
    """

    class Changed(Message):
        """The user has changed how the chart shows its curves."""

        def __init__(self, chart: Chart) -> None:
            super().__init__()
            self.chart = chart

    def __init__(
        self,
        title: str,
        *,
        smoothing: float = 0.0,
        legend: bool = True,
        frame: float = FRAME,
        id: str | None = None,  # noqa: A002 - Textual's word
    ) -> None:
        """`legend`: name the curves and the smoothing in the frame; `frame`: seconds between two frames."""
        super().__init__(id=id)
        self.legend = legend
        self.heading = title
        self.traces: dict[str, raster.Trace] = {}
        self.axes: Named[str, Named[str, axes.Mapping]] = {}
        """Curve -> kind of horizontal axis -> its steps on it."""
        self.marks: dict[int, float] = {}
        self.marks_name = ""
        self.events: tuple[notes.Mark, ...] = ()
        self.bounds: tuple[notes.Bound, ...] = ()
        self.logarithmic, self.smoothing, self.kind = False, smoothing, "step"
        self.window = Window()
        self.cross: float | None = None
        """The position of the crosshair."""
        self.limit, self.growing = 0, True
        """The last step of the run, 0 while it is not known; whether points may still come."""
        self._anchor: float | None = None
        """Where the user has begun to choose a range."""
        self._title, self._subtitle = Content(""), ""
        self._edge = 0.0
        self._range: tuple[float, float] | None = None
        self._view: axes.View | None = None
        self._throttle = Throttle(self, self.draw, frame)

    # ── content ──────────────────────────────────────────────────────────────────────────────────────────────────

    def load(
        self,
        traces: dict[str, raster.Trace],
        limit: int = 0,
        axes: Named[str, Named[str, axes.Mapping]] | None = None,
    ) -> None:
        """Replace all curves. `axes` gives each its places on other horizontal axes than that of steps."""
        self.traces, self.limit, self.axes = traces, limit, axes or {}
        self.marks, self._edge, self._range = {}, 0.0, None
        self._arrange()
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

    def add(self, name: str, trace: raster.Trace) -> None:
        """Draw one more curve."""
        self.traces[name] = trace
        self._arrange()

    def append(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Append points to the curve `name`. Points at or before its newest step are ignored."""
        if name not in self.traces:
            self.add(name, raster.Trace(Curve()))
        curve = self.traces[name].curve
        if sum(curve.append(step, value) for step, value in points):
            self._throttle.request()

    def _arrange(self) -> None:
        """Give all curves the smoothing and the horizontal axis of the chart: that of steps, if one lacks the other."""
        if self.traces and self.kind not in self.kinds():
            self._look_over("step")
        for name, trace in self.traces.items():
            trace.smoothing = self.smoothing
            trace.mapping = self.axes.get(name, {}).get(self.kind, axes.STEPS)

    # ── the view ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def mapping(self) -> axes.Mapping:
        """The horizontal axis of marks and of the first curve."""
        return share_mapping(self.traces.values())

    def kinds(self) -> list[str]:
        """The horizontal axes that all curves can be shown on."""
        shared = [set(self.axes.get(name, {})) for name in self.traces]
        return [kind for kind in axes.X_AXES if kind == "step" or (shared and all(kind in each for each in shared))]

    def extent(self) -> tuple[float, float]:
        """The first position, and the right edge, which is a little beyond the last one while the run goes on."""
        traces = [trace for trace in self.traces.values() if len(trace.curve)]
        first = min((trace.first for trace in traces), default=0.0)
        last = max((trace.last for trace in traces), default=0.0)
        first = 0.0 if first <= max(self._least() / 4, last / 20) else first
        limit = self.mapping.position(self.limit) if self.limit else 0.0
        self._edge = axes.extend_edge(self._edge or last, first, last, limit, 2 * self._least())
        return first, self._edge

    def _least(self) -> float:
        """The narrowest range: four steps."""
        return abs(self.mapping.position(4) - self.mapping.position(0)) or 4.0

    def span(self) -> tuple[float, float]:
        """The first and the last visible position."""
        return self.window.resolve(*self.extent(), self._least())

    def toggle_log(self) -> None:
        self.logarithmic, self._range = not self.logarithmic, None
        self._change()

    def zoom_by(self, direction: int) -> None:
        """+1 shows half of the visible range, -1 twice as much: around the crosshair, else the newest."""
        self._look(self.window.zoomed(direction, self.extent(), self.cross, self._least()))

    def _look(self, window: Window) -> None:
        self.window, self._range = window, None
        self._change()

    def _change(self) -> None:
        self.draw()
        self.post_message(self.Changed(self))

    def action_pan(self, direction: int) -> None:
        self._look(self.window.panned(direction, self.extent(), self._least()))

    def action_whole(self) -> None:
        self._look(Window())

    def action_follow(self) -> None:
        self.cross = self._anchor = None
        self._look(self.window.following())

    def action_smooth(self, direction: int) -> None:
        at = min(range(len(SMOOTHINGS)), key=lambda index: abs(SMOOTHINGS[index] - self.smoothing)) + direction
        self.smoothing = SMOOTHINGS[max(0, min(len(SMOOTHINGS) - 1, at))]
        self._arrange()
        self._change()

    def action_x_axis(self) -> None:
        """Show the next horizontal axis that the curves have."""
        kinds = self.kinds()
        self.show_kind(kinds[(kinds.index(self.kind) + 1) % len(kinds)] if self.kind in kinds else "step")
        self._change()

    def show_kind(self, kind: str) -> None:
        """Show this horizontal axis, where the curves have it."""
        self._look_over(kind if kind in self.kinds() else "step")
        self._arrange()

    def _look_over(self, kind: str) -> None:
        self.kind, self.window, self.cross, self._anchor, self._edge = kind, Window(), None, None, 0.0

    def action_cross(self, direction: int) -> None:
        """Move the crosshair by a cell; without one, put it at the newest value."""
        first, last = self.span()
        cell = (last - first) / max(1, self.content_size.width - raster.GUTTER)
        newest = max((trace.last for trace in self.traces.values()), default=0.0)
        at = min(newest, last) if self.cross is None else self.cross + direction * cell
        self._put_cross(at)

    def _put_cross(self, at: float) -> None:
        whole, (first, last) = self.extent(), self.span()
        if self.window.range is not None and not first <= at <= last:
            self.window = self.window.panned(1 if at > last else -1, whole, self._least())
            first, last = self.span()
        self.cross = max(first, min(last, at))
        self._change()

    def action_range(self) -> None:
        """Begin a range at the crosshair, then show the range up to it."""
        if self.cross is None:
            self.action_cross(0)
        if self._anchor is None or self.cross is None:
            self._anchor = self.cross
            self.draw()
            return
        window = self.window.on(self._anchor, self.cross, self.extent(), self._least())
        self.cross = self._anchor = None
        self._look(window)

    def action_clear(self) -> None:
        self.cross = self._anchor = None
        self._change()

    def share_view(self, other: Chart) -> None:
        """Look at the same part as another chart, over the same axis, with the crosshair at the same place."""
        if other.kind != self.kind:
            self.show_kind(other.kind)
        if self.kind == other.kind and (self.window, self.cross) != (other.window, other.cross):
            self._range = self._range if self.window == other.window else None
            self.window, self.cross = other.window, other.cross
        self.draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.cross is not None if action == "clear" else True

    # ── the mouse ────────────────────────────────────────────────────────────────────────────────────────────────

    def _position_at(self, event: events.MouseEvent) -> float | None:
        offset = event.get_content_offset(self)
        if offset is None or offset.x < raster.GUTTER or self._view is None:
            return None
        return self._view.position(2 * (offset.x - raster.GUTTER), 2 * (self.content_size.width - raster.GUTTER))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        at = self._position_at(event)
        if at is not None:
            self.capture_mouse()  # it may be let go outside
            self._anchor = at
            self._put_cross(at)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        at = self._position_at(event)
        anchor, self._anchor = self._anchor, None
        self.release_mouse()
        first, last = self.span()
        if at is None or anchor is None or abs(at - anchor) < (last - first) / 40:
            self.draw()
            return
        self.cross = None
        self._look(self.window.on(anchor, at, self.extent(), self._least()))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll(event, 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll(event, -1)

    def _scroll(self, event: events.MouseEvent, direction: int) -> None:
        event.stop()
        self._look(self.window.zoomed(direction, self.extent(), self._position_at(event), self._least()))

    # ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def draw(self) -> None:
        self._set_titles()
        width, height = self.content_size
        if not width or not height:
            return
        first, last = self.span()
        mapping = self.mapping
        marks = [(mapping.position(step), value) for step, value in sorted(self.marks.items())]
        plot = max(1, width - raster.GUTTER)
        value_range = raster.extremes(self.traces.values(), marks, first, last, self.logarithmic, plot)
        if value_range is None:
            words = notes.say_nothing(part=self.window.range is not None, growing=self.growing)
            waiting = words.center(width)[:width]
            blank = (" " * width, bytes(width))
            line = (waiting, bytes([raster.LABEL]) * width)
            self.paint([line if row == height // 2 else blank for row in range(height)])
            return
        self._range = axes.stable_range(self._range, *notes.widen(*value_range, self.bounds, self.logarithmic))
        view = self._view = axes.View(first, last, *self._range, self.logarithmic)
        changes = [(mapping.position(step), word) for step, word in self.events]
        note = partial(self._note, changes=changes, view=view, marks=marks)
        shades = self.has_shades
        self.paint(raster.chart(list(self.traces.values()), marks, view, width, height, note, shades, self.kind))

    def _note(
        self,
        rows: Sequence[raster.Row],
        changes: Sequence[notes.Mark],
        view: axes.View,
        marks: Sequence[tuple[float, float]],
    ) -> list[raster.Row]:
        found = notes.annotate(rows, changes, self.bounds, view)
        for at in (self._anchor, self.cross):
            if at is not None and view.first <= at <= view.last:
                lines = (
                    [] if at != self.cross else describe_position(self.traces, at, self.kind, self.marks_name, marks)
                )
                found = notes.draw_crosshair(found, view.column(at, 2 * len(rows[0][0])) >> 1, lines)
        return found

    def on_resize(self) -> None:
        self.draw()

    def _set_titles(self) -> None:
        """Set the title with the legend (with shapes, for NO_COLOR) and the subtitle with the scale. They contain
        nothing that changes with every point: setting a title repaints the whole widget, even when it is the same."""
        parts = [Content(self.heading)]
        colours = {raster.LINE: "$accent", raster.SECOND: "$success"}
        room, several = self.legend and self.size.width >= 44, len(self.traces) > 1
        for name, trace in self.traces.items() if room and several else ():
            line = f"{trace.mark} " if trace.mark else "╍╍ " if trace.dashed else "━━ "
            component = f"canvas--{raster.ROLES[trace.role]}"
            colour = colours.get(trace.role) or self.get_component_styles(component).color.hex
            parts.append(Content.assemble((line, colour), (name, "$text")))
        if room and any(trace.band for trace in self.traces.values()):
            parts.append(Content.styled(tr("━ smoothed") if self.smoothing else tr("━ mean"), "$accent"))
            parts.append(Content.styled(tr("▒ measured"), "$primary"))
        if room and self.marks:
            newest = self.marks[max(self.marks)]
            parts.append(Content.styled(f"◆ {self.marks_name} {format_number(newest)}", "$error"))
        title = Content("  ").join(parts)
        notes = [tr("smoothed {smoothing:g}", smoothing=self.smoothing)] if self.smoothing else []
        notes += ["log"] if self.logarithmic else []
        notes += [tr("over {kind}", kind=self.kind)] if self.kind != "step" else []
        if self.window.range is not None:
            notes.append(" … ".join(axes.write_position(each, self.kind) for each in self.window.range))
        elif self.window.zoom:
            notes.append(tr("newest 1/{zoom}", zoom=2**self.window.zoom))
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
