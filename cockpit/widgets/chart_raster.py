"""Draws curves in braille cells. Pure: no Textual, no terminal; a picture is rows of characters, each with a role.

Each cell has 2 × 4 dots. Points are first reduced to extremes and a middle for each column of dots, so that a frame
takes as long for a hundred points as for a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cockpit.state.formatting import format_number
from cockpit.widgets.curve import Bucket, Curve

Row = tuple[str, bytes]
"""A row's characters, and for each of them the index of its role in `ROLES`."""

ROLES = ("blank", "axis", "label", "band", "line", "second", "marker", "event", "bound")
BLANK, AXIS, LABEL, BAND, LINE, SECOND, MARKER, EVENT, BOUND = range(len(ROLES))
MARK = "◆"
GUTTER = 7
"""Cells left of the plot: labels of at most six characters and the axis."""
GROWTH = 1.25
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Braille bits by row and column of a cell's dots."""


@dataclass
class Trace:
    """A curve to draw: its extremes dim (`band`), its smoothed middle bright. `dashed` distinguishes a second curve
    without colour."""

    curve: Curve
    role: int = LINE
    band: bool = True
    dashed: bool = False


class View(NamedTuple):
    """The range of a plot. With `log`, `low` and `high` are exponents of ten."""

    first: int
    last: int
    low: float
    high: float
    log: bool = False

    def column(self, step: float, dots: int) -> int:
        """The dot column of a step: 0 … dots-1 for steps within the range."""
        return round((step - self.first) / max(1, self.last - self.first) * (dots - 1))

    def line(self, value: float, dots: int) -> int:
        """The dot row of a value, 0 at the top. Values outside the range are drawn at the edge."""
        scaled = scale(value, self.log)
        if scaled is None:
            return dots - 1
        share = (scaled - self.low) / ((self.high - self.low) or 1.0)
        return round((1 - max(0.0, min(1.0, share))) * (dots - 1))


@dataclass
class Picture:
    """A plot being drawn, `width` × `height` cells."""

    width: int
    height: int
    layers: dict[int, list[int]] = field(default_factory=dict)
    marks: list[tuple[int, int]] = field(default_factory=list)

    def dot(self, role: int, x: int, y: int) -> None:
        if role not in self.layers:
            self.layers[role] = [0] * (self.width * self.height)
        self.layers[role][(y >> 2) * self.width + (x >> 1)] |= _DOTS[y & 3][x & 1]

    def stroke(self, role: int, x0: int, y0: int, x1: int, y1: int, dashed: bool = False) -> None:
        """A connected line from the dot (x0, y0) to (x1, y1), x0 ≤ x1."""
        columns = max(1, x1 - x0)
        before = y0
        for x in range(x0, x1 + 1):
            y = round(y0 + (y1 - y0) * (x - x0) / columns) if x1 > x0 else y1
            start, stop = (before, y) if before <= y else (y, before)
            if not (dashed and x % 6 >= 3):
                for between in range(
                    start + (start != stop and start == before), stop + (stop != before or start == stop)
                ):
                    self.dot(role, x, between)
            before = y

    def rows(self) -> list[Row]:
        """The cells, with marks over lines over bands."""
        size = self.width * self.height
        characters, roles = [" "] * size, bytearray(size)
        for role in sorted(self.layers):
            for cell, bits in enumerate(self.layers[role]):
                if bits:
                    characters[cell], roles[cell] = chr(0x2800 + bits), role
        for x, y in self.marks:
            cell = (y >> 2) * self.width + (x >> 1)
            characters[cell], roles[cell] = MARK, MARKER
        starts = range(0, size, self.width)
        return [("".join(characters[at : at + self.width]), bytes(roles[at : at + self.width])) for at in starts]


def scale(value: float, log: bool) -> float | None:
    """The position of a value on the axis; None for a value that a log scale cannot show."""
    if not log:
        return value
    return math.log10(value) if value > 0 else None


def extend_edge(edge: int, first: int, last: int, limit: int) -> int:
    """The right edge after a point at `last`: unchanged while there is room, else the span grows by a quarter, up to
    `limit`."""
    if first < last <= edge:
        return edge
    grown = first + max(8, math.ceil((last - first) * GROWTH))
    return max(last, min(grown, limit) if limit else grown)


def stable_range(old: tuple[float, float] | None, low: float, high: float) -> tuple[float, float]:
    """The y range for values low…high: the old range while they fit and fill half of it, else their own with a margin
    of a twentieth."""
    if old and old[0] <= low and high <= old[1] and high - low >= 0.5 * (old[1] - old[0]):
        return old
    spare = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (max(0.0, low - spare) if low >= 0 else low - spare), high + spare


def extremes(
    traces: Iterable[Trace], marks: Iterable[tuple[int, float]], first: int, last: int, log: bool
) -> tuple[float, float] | None:
    """The lowest and the highest position on the axis between two steps; None when there are no values."""
    values = [value for step, value in marks if first <= step <= last]
    for trace in traces:
        for bucket in trace.curve.between(first, last):
            values += (bucket.low, bucket.high)
    visible = [scaled for value in values if math.isfinite(value) and (scaled := scale(value, log)) is not None]
    return (min(visible), max(visible)) if visible else None


def columns(curve: Curve, view: View, dots: int) -> list[Bucket]:
    """The curve reduced to one bucket for each dot column, whose `first` and `last` are that column."""
    found: dict[int, list[Bucket]] = {}
    for bucket in curve.between(view.first, view.last):
        start, stop = (min(dots - 1, max(0, view.column(step, dots))) for step in (bucket.first, bucket.last))
        for column in range(start, stop + 1):
            found.setdefault(column, []).append(bucket)
    return [
        Bucket(
            column,
            column,
            min(bucket.low for bucket in group),
            max(bucket.high for bucket in group),
            sum(bucket.middle for bucket in group) / len(group),
        )
        for column, group in found.items()
    ]


def smooth(values: Sequence[float]) -> list[float]:
    """A centred mean over a fortieth of the curve to each side. It is narrower at the ends, so that the newest value is
    unchanged."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    reach, count = max(1, min(8, len(values) // 40)), len(values)
    result = []
    for at in range(count):
        width = min(reach, at, count - 1 - at)
        result.append((sums[at + width + 1] - sums[at - width]) / (2 * width + 1))
    return result


def plot(traces: Sequence[Trace], marks: Iterable[tuple[int, float]], view: View, width: int, height: int) -> list[Row]:
    """The plot without axes, `width` × `height` cells."""
    picture = Picture(width, height)
    wide, tall = width * 2, height * 4
    for trace in traces:
        reduced = columns(trace.curve, view, wide)
        if trace.band:
            _draw_band(picture, reduced, view, tall)
        line = smooth([column.middle for column in reduced])
        dots = [(column.first, view.line(value, tall)) for column, value in zip(reduced, line, strict=True)]
        for (x0, y0), (x1, y1) in zip(dots[:1] + dots, dots, strict=False):
            picture.stroke(trace.role, x0, y0, x1, y1, trace.dashed)
    picture.marks = [
        (view.column(step, wide), view.line(value, tall)) for step, value in marks if view.first <= step <= view.last
    ]
    return picture.rows()


def _draw_band(picture: Picture, reduced: Sequence[Bucket], view: View, tall: int) -> None:
    before: tuple[int, int] | None = None
    for column in reduced:
        top, bottom = view.line(column.high, tall), view.line(column.low, tall)
        for y in range(top, bottom + 1):
            picture.dot(BAND, column.first, y)
        middle = view.line(column.middle, tall)
        if before:
            picture.stroke(BAND, *before, column.first, middle)
        before = column.first, middle


def chart(
    traces: Sequence[Trace],
    marks: Sequence[tuple[int, float]],
    view: View,
    width: int,
    height: int,
    note: Callable[[list[Row]], list[Row]] = list,
) -> list[Row]:
    """The plot with a labelled y axis on the left and a labelled x axis below; `note` adds annotations to the plot.
    Blank below 12 × 3 cells."""
    if width < GUTTER + 5 or height < 3:
        return [(" " * width, bytes(width))] * height
    inner, tall = width - GUTTER, height - 1
    body = note(plot(traces, marks, view, inner, tall))
    labels = dict(_y_labels(view, tall))
    rows = []
    for at, (text, roles) in enumerate(body):
        label = labels.get(at, "")
        edge = "┤" if label else "│"
        rows.append((label.rjust(GUTTER - 1) + edge + text, bytes([LABEL] * (GUTTER - 1) + [AXIS]) + roles))
    return [*rows, _x_axis(view, inner)]


def _y_labels(view: View, tall: int) -> Iterator[tuple[int, str]]:
    taken = -9
    apart = 2 if tall > 4 else 1
    for value in reversed(ticks(view.low, view.high, max(3, tall // 3), view.log)):
        row = view.line(value, tall * 4) >> 2
        if row - taken >= apart:
            taken = row
            yield row, format_number(value)


def _x_axis(view: View, inner: int) -> Row:
    text, roles = ["└"] + ["─"] * inner, bytearray([AXIS] * (inner + 1))
    free = 0
    for step in ticks(view.first, view.last, max(2, inner // 14)):
        if step != int(step):
            continue
        label = f"{int(step):,}"
        at = 1 + (view.column(step, inner * 2) >> 1)
        if at >= free and at + len(label) <= inner + 1:
            text[at : at + len(label)] = label
            roles[at : at + len(label)] = bytes([LABEL]) * len(label)
            free = at + len(label) + 2
    return " " * (GUTTER - 1) + "".join(text), bytes(GUTTER - 1) + bytes(roles)


def ticks(low: float, high: float, count: int, log: bool = False) -> list[float]:
    """About `count` round values from low to high, in steps of 1, 2 or 5 times a power of ten. With `log`, the range is
    in exponents of ten and the values are not."""
    if log:
        decades = range(math.floor(low), math.ceil(high) + 1)
        factors = (1, 2, 5) if high - low < count else (1,)
        candidates = [factor * 10.0**decade for decade in decades for factor in factors]
        return [value for value in candidates if low <= math.log10(value) <= high]
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) for at in range(start, math.floor(high / step + 1e-9) + 1)]


def spark(values: Sequence[float], width: int, height: int, top: float = 100.0) -> list[Row]:
    """The newest values between 0 and `top`, one for each dot column, from the right: a bright line over a dim fill."""
    picture = Picture(width, height)
    newest = values[-2 * width :]
    tall, offset = height * 4, 2 * width - len(newest)
    before: int | None = None
    for at, value in enumerate(newest):
        x, y = offset + at, tall - 1 - round(max(0.0, min(1.0, value / top)) * (tall - 1))
        for below in range(y, tall):
            picture.dot(BAND, x, below)
        picture.stroke(LINE, x - (before is not None), y if before is None else before, x, y)
        before = y
    return picture.rows()
