"""A chart's annotations: thin vertical marks where something changed, dashed lines at bounds, and a crosshair. Pure.

Marks and lines use only blank cells, so that they never hide a point, and shapes of their own, so that they need no
colour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size

from cockpit.language.translate import tr
from cockpit.widgets.chart_axes import View, scale
from cockpit.widgets.chart_raster import BLANK, BOUND, CROSS, EVENT, READOUT, SHADED, Row

UPRIGHT, DASH = "┊", "╌"
MAX_WIDENING = 1.0
"""How far a bound may widen the range of values, in multiples of the range. A more distant bound is an arrow at the
edge."""

FREE = frozenset((BLANK, BLANK | SHADED))
"""Roles of cells that hold no dots; an annotation may stand on the band's shade."""

Mark = tuple[float, str]
"""A position on the horizontal axis and a short name."""
Bound = tuple[float, str]
"""A value and its label."""


def widen(low: float, high: float, bounds: Iterable[Bound], log: bool) -> tuple[float, float]:
    """The range on the axis, widened to include the bounds that are near enough."""
    reach = MAX_WIDENING * ((high - low) or abs(high) or 1.0)
    for value, _ in bounds:
        scaled = scale(value, log)
        if scaled is not None and low - reach <= scaled <= high + reach:
            low, high = min(low, scaled), max(high, scaled)
    return low, high


def annotate(rows: Sequence[Row], marks: Sequence[Mark], bounds: Sequence[Bound], view: View) -> list[Row]:
    """The plot's rows with its annotations. Marks take precedence over bounds; a label without room is left out."""
    if not rows or not (marks or bounds):
        return list(rows)
    texts, roles = [list(text) for text, _ in rows], [bytearray(each) for _, each in rows]
    height, width = len(rows), len(texts[0])

    def put(x: int, y: int, text: str, role: int) -> None:
        for at, character in enumerate(text, x):
            if roles[y][at] in FREE:
                texts[y][at], roles[y][at] = character, role | roles[y][at]

    def free(x: int, y: int, length: int) -> bool:
        return x >= 0 and x + length <= width and FREE.issuperset(roles[y][x : x + length])

    upright: dict[int, list[str]] = {}
    for step, word in marks:
        if view.first <= step <= view.last:
            upright.setdefault(view.column(step, width * 2) >> 1, []).append(word)
    for x, words in upright.items():
        y = 0
        for word in dict.fromkeys(words):
            places = (
                (at, row)
                for row in range(y, max(1, height // 2))
                for at in (x + 1, x - len(word))
                if free(at, row, len(word)) and upright.keys().isdisjoint(range(at, at + len(word)))
            )
            for at, row in itertools.islice(places, 1):
                put(at, row, word, EVENT)
                y = row + 1
    for x in upright:
        for y in range(height):
            put(x, y, UPRIGHT, EVENT)

    dashed = []
    for value, name in bounds:
        scaled = scale(value, view.log)
        beyond = "▼" if scaled is None or scaled < view.low else "▲" if scaled > view.high else ""
        label, y = f" {beyond}{name} ", view.line(value, height * 4) >> 2
        place = next((at for at in range(width - len(label), -1, -1) if free(at, y, len(label))), None)
        if place is not None:
            put(place, y, label, BOUND)
        if not beyond:
            dashed.append(y)
    for y in dashed:
        put(0, y, DASH * width, BOUND)
    return [("".join(text), bytes(each)) for text, each in zip(texts, roles, strict=True)]


def draw_crosshair(rows: Sequence[Row], x: int, lines: Sequence[str]) -> list[Row]:
    """The plot's rows with an upright at the cell column x and, on the side with more room, a box of lines. The first
    line is about the position, the others about curves."""
    if not rows:
        return list(rows)
    width = len(rows[0][0])
    inner = min(max(map(cell_len, lines), default=0), max(0, max(x, width - x - 1) - 3))
    at = x + 2 if width - x - 1 > x else x - inner - 3
    found = []
    for y, (text, roles) in enumerate(rows):
        characters, each = list(text), bytearray(roles)
        if 0 <= x < width and each[x] in FREE:
            characters[x], each[x] = "│", CROSS | each[x]
        if y < len(lines) and inner > 0 and at >= 0 and at + inner + 2 <= width:
            words = f" {set_cell_size(lines[y], inner)} "
            if len(words) == inner + 2:  # one character for each cell
                characters[at : at + inner + 2] = words
                each[at : at + inner + 2] = bytes([READOUT]) * (inner + 2)
        found.append(("".join(characters), bytes(each)))
    return found


def say_nothing(*, part: bool, growing: bool) -> str:
    """What stands in a chart without points. `part`: not all of it is shown; `growing`: points may still come."""
    if part:
        return tr("no points here: Home shows all")
    return tr("no points yet") if growing else tr("no points")
