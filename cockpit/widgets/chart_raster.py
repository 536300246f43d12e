"""Draws curves in cells. Pure: no Textual, no terminal; a picture is rows of characters, each with a role.

Each cell has 2 × 4 dots for lines. The measured band is a shade behind them, with edges of an eighth of a cell; where
shades are not to be had (16 colours, NO_COLOR), it is a pattern of dots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cockpit.widgets.chart_axes import STEPS, Mapping, View, finite_range, ticks, write_position, write_ticks, x_ticks
from cockpit.widgets.chart_columns import Column, Columns, band_reach, envelope
from cockpit.widgets.curve import Curve

Row = tuple[str, bytes]
"""A row's characters, and for each of them its role: the index in `ROLES`, with `SHADED` added over the band."""

RUNS = 8
"""Runs that one chart can tell apart."""
ROLES = (
    *("blank", "axis", "label", "band", "line", "second", "marker", "event", "bound", "cross", "readout"),
    *(f"run{at}" for at in range(RUNS)),
)
BLANK, AXIS, LABEL, BAND, LINE, SECOND, MARKER, EVENT, BOUND, CROSS, READOUT, RUN = range(12)
SHADED, INVERSE = 64, 128
"""Added to a role: on the band's shade; the shade and the background exchanged."""
RUN_MARKS = "●■▲◆▼✚✖★"
"""The marks of runs in one chart, so that no colour is needed to tell them apart."""
MARK = "◆"
GUTTER = 7
"""Cells left of the plot: labels of at most six characters and the axis."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Braille bits by row and column of a cell's dots."""
_EIGHTHS = " ▁▂▃▄▅▆▇"
_LEAST = 3
"""Eighths of a cell from which a line in it stands on the shade, and a band of its own is drawn as one."""


@dataclass
class Trace:
    """A curve to draw: its extremes as a band (`band`), its smoothed mean as a bright line. `dashed` and `mark`
    distinguish it from others without colour; `mapping` gives its steps a place on the horizontal axis."""

    curve: Curve
    role: int = LINE
    band: bool = True
    dashed: bool = False
    smoothing: float = 0.0
    mark: str = ""
    mapping: Mapping = STEPS
    columns: Columns = field(default_factory=Columns, repr=False, compare=False)

    def reduce(self, first: float, last: float, dots: int) -> list[Column]:
        """The curve between two positions in so many dot columns."""
        return self.columns.update(self.curve, first, last, dots, self.smoothing, self.mapping)

    @property
    def first(self) -> float:
        return self.mapping.position(self.curve.first)

    @property
    def last(self) -> float:
        return self.mapping.position(self.curve.last)


@dataclass
class Picture:
    """A plot being drawn, `width` × `height` cells."""

    width: int
    height: int
    layers: dict[int, list[int]] = field(default_factory=dict)
    shade: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Column of cells -> top and bottom of the band in eighths of a cell, the bottom outside it."""
    marks: list[tuple[int, int, str, int]] = field(default_factory=list)
    """Dot column, dot row, character and role."""

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
        for x, (top, bottom) in self.shade.items():
            self._fill(characters, roles, x, top, bottom)
        for role in sorted(self.layers):
            for cell, bits in enumerate(self.layers[role]):
                if bits:
                    characters[cell], roles[cell] = chr(0x2800 + bits), role | (roles[cell] & SHADED)
        for x, y, mark, role in self.marks:
            cell = (y >> 2) * self.width + (x >> 1)
            characters[cell], roles[cell] = mark, role | (roles[cell] & SHADED)
        starts = range(0, size, self.width)
        return [("".join(characters[at : at + self.width]), bytes(roles[at : at + self.width])) for at in starts]

    def _fill(self, characters: list[str], roles: bytearray, x: int, top: int, bottom: int) -> None:
        """The shade in one column of cells. A cell that it covers in part has a block with its edge; one in whose
        middle it lies is left to the line."""
        for y in range(top >> 3, (bottom + 7) >> 3):
            cell = y * self.width + x
            above, below = max(0, top - 8 * y), max(0, 8 * y + 8 - bottom)
            covered = 8 - above - below
            if not above and not below:
                roles[cell] = BLANK | SHADED
            elif above and not below:
                characters[cell], roles[cell] = _EIGHTHS[covered], BAND | (SHADED if covered >= _LEAST else 0)
            elif below and not above:
                characters[cell], roles[cell] = _EIGHTHS[below], BAND | INVERSE | (SHADED if covered >= _LEAST else 0)
            elif covered >= _LEAST:
                roles[cell] = BLANK | SHADED


def extremes(
    traces: Iterable[Trace],
    marks: Iterable[tuple[float, float]],
    first: float,
    last: float,
    log: bool,
    width: int = 200,
) -> tuple[float, float] | None:
    """The lowest and the highest position on the axis between two positions, in a plot of `width` cells; None when
    there are no values."""
    values = [value for at, value in marks if first <= at <= last]
    for trace in traces:
        for column in trace.reduce(first, last, 2 * width):
            values += (column.low, column.high)
    return finite_range(values, log)


def plot(
    traces: Sequence[Trace],
    marks: Iterable[tuple[float, float]],
    view: View,
    width: int,
    height: int,
    shades: bool = True,
) -> list[Row]:
    """The plot without axes, `width` × `height` cells. Without `shades` a band is dots."""
    picture = Picture(width, height)
    wide, tall = width * 2, height * 4
    for at, trace in enumerate(traces):
        columns = trace.reduce(view.first, view.last, wide)
        if trace.band:
            band = envelope(columns, band_reach(columns, trace.smoothing, wide))
            _shade(picture, band, view) if shades else _dot_band(picture, band, view, tall)
        dots = [(column.at, view.line(column.smooth, tall)) for column in columns if math.isfinite(column.smooth)]
        for (x0, y0), (x1, y1) in zip(dots[:1] + dots, dots, strict=False):
            picture.stroke(trace.role, x0, y0, x1, y1, trace.dashed)
        if trace.mark and dots:
            picture.marks += _place_marks(trace, dots, at, wide)
    picture.marks += [
        (view.column(at, wide), view.line(value, tall), MARK, MARKER)
        for at, value in marks
        if view.first <= at <= view.last
    ]
    return picture.rows()


def _place_marks(trace: Trace, dots: Sequence[tuple[int, int]], at: int, wide: int) -> list[tuple[int, int, str, int]]:
    """The mark of a run on its line, about six times, each run's at other places, and at its end."""
    apart = max(16, wide // 6)
    wanted = range(apart * (2 * at + 1) // (2 * RUNS), wide, apart)
    found = []
    left = 0
    for x in wanted:
        while left < len(dots) and dots[left][0] < x:
            left += 1
        if left < len(dots) and dots[left][0] - x < apart // 4:
            found.append((*dots[left], trace.mark, trace.role))
    return [*found, (*dots[-1], trace.mark, trace.role)]


def _shade(picture: Picture, band: Sequence[tuple[int, float, float]], view: View) -> None:
    """Each column of cells is shaded from the highest to the lowest value in it; a gap between two is filled."""
    eighths = picture.height * 8
    before: tuple[int, int, int] | None = None
    for at, low, high in band:
        if not (math.isfinite(low) and math.isfinite(high)):
            continue
        x, top, bottom = at >> 1, view.line(high, eighths), view.line(low, eighths) + 1
        if x in picture.shade:
            top, bottom = min(top, picture.shade[x][0]), max(bottom, picture.shade[x][1])
        if before and x - before[0] > 1:
            for between in range(before[0] + 1, x):
                share = (between - before[0]) / (x - before[0])
                edges = (round(start + share * (end - start)) for start, end in ((before[1], top), (before[2], bottom)))
                picture.shade[between] = (next(edges), next(edges))
        picture.shade[x] = (top, bottom)
        before = (x, top, bottom)


def _dot_band(picture: Picture, band: Sequence[tuple[int, float, float]], view: View, tall: int) -> None:
    """Every second dot from the highest to the lowest value, like a chessboard; a gap between two is filled."""
    known = [
        (at, view.line(high, tall), view.line(low, tall))
        for at, low, high in band
        if math.isfinite(low) and math.isfinite(high)
    ]
    for (x0, top0, bottom0), (x1, top1, bottom1) in zip(known[:1] + known, known, strict=False):
        for x in range(x0 + 1 if x1 > x0 else x1, x1 + 1):
            share = (x - x0) / ((x1 - x0) or 1)
            for y in range(round(top0 + share * (top1 - top0)), round(bottom0 + share * (bottom1 - bottom0)) + 1):
                if (x + y) & 1:
                    picture.dot(BAND, x, y)


def chart(
    traces: Sequence[Trace],
    marks: Sequence[tuple[float, float]],
    view: View,
    width: int,
    height: int,
    note: Callable[[list[Row]], list[Row]] = list,
    shades: bool = True,
    kind: str = "step",
) -> list[Row]:
    """The plot with a labelled y axis on the left and a labelled x axis below, which shows `kind`; `note` adds
    annotations to the plot. Blank below 12 × 3 cells."""
    if width < GUTTER + 5 or height < 3:
        return [(" " * width, bytes(width))] * height
    inner, tall = width - GUTTER, height - 1
    body = note(plot(traces, marks, view, inner, tall, shades))
    labels = _y_labels(view, tall)
    rows = []
    for at, (text, roles) in enumerate(body):
        label = labels.get(at, "")
        edge = "┤" if label else "│"
        rows.append((label.rjust(GUTTER - 1) + edge + text, bytes([LABEL] * (GUTTER - 1) + [AXIS]) + roles))
    return [*rows, _x_axis(view, inner, kind)]


def _y_labels(view: View, tall: int) -> dict[int, str]:
    values = list(reversed(ticks(view.low, view.high, max(3, tall // 3), view.log)))
    found: dict[int, str] = {}
    taken = -9
    apart = 2 if tall > 4 else 1
    for value, label in zip(values, write_ticks(values), strict=True):
        row = view.line(value, tall * 4) >> 2
        if row - taken >= apart and label:
            taken = row
            found[row] = label
    return found


def _x_axis(view: View, inner: int, kind: str) -> Row:
    text, roles = ["└"] + ["─"] * inner, bytearray([AXIS] * (inner + 1))
    free = 0
    for position in x_ticks(view.first, view.last, max(2, inner // 14), kind):
        label = write_position(position, kind)
        at = 1 + (view.column(position, inner * 2) >> 1)
        if at >= free and at + len(label) <= inner + 1:
            text[at : at + len(label)] = label
            roles[at : at + len(label)] = bytes([LABEL]) * len(label)
            free = at + len(label) + 2
    return " " * (GUTTER - 1) + "".join(text), bytes(GUTTER - 1) + bytes(roles)


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
