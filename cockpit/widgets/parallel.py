"""Parallel coordinates: an axis for each setting of a grid and one for its metric, and a line for each run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cockpit.widgets.chart_raster import AXIS, BAND, LABEL, LINE, SECOND, Picture, Row

LABEL_WIDTH = 10
"""Cells of a value beside its axis."""


class Axis(NamedTuple):
    """`ticks` are values with their heights from 0, the bottom, to 1."""

    title: str
    ticks: list[tuple[str, float]]


def place_values(values: Sequence[str]) -> dict[str, float]:
    """The height of each value of a setting: in its order, evenly apart."""
    numbers = _read_numbers(values)
    ordered = list(values) if numbers is None else [value for _, value in sorted(zip(numbers, values, strict=True))]
    if len(ordered) == 1:
        return {ordered[0]: 0.5}
    return {value: at / (len(ordered) - 1) for at, value in enumerate(ordered)}


def place_metric(values: Sequence[float | None], rises: bool) -> list[float | None]:
    """The height of each run's value; the best is at the top."""
    known = [value for value in values if value is not None]
    if not known:
        return [None] * len(values)
    low, high = min(known), max(known)
    heights = [None if value is None else 0.5 if high == low else (value - low) / (high - low) for value in values]
    return heights if rises else [None if height is None else 1 - height for height in heights]


def draw(
    axes: Sequence[Axis], lines: Sequence[Sequence[float | None]], chosen: int, width: int, height: int
) -> list[Row]:
    """The picture. `lines` have a height on each axis, None where a run has no value; the best comes first and is
    bright, the one at `chosen` stands out, the others are dim. The first row has the titles."""
    tall = max(height - 1, 1)
    picture = Picture(width, tall)
    room = max(2, width - LABEL_WIDTH - 1)
    columns = [round(at * (room - 1) / max(len(axes) - 1, 1)) for at in range(len(axes))]

    def dot_row(value: float) -> int:
        return round((1 - value) * (tall * 4 - 1))

    for number, line in reversed(list(enumerate(lines))):
        role = SECOND if number == chosen else LINE if number == 0 else BAND
        for left, right, start, end in zip(columns, columns[1:], line, line[1:], strict=False):
            if start is not None and end is not None:
                dashed = number not in (0, chosen)
                picture.stroke(role, left * 2, dot_row(start), right * 2, dot_row(end), dashed)
    rows = [(list(text), bytearray(roles)) for text, roles in picture.rows()]
    for column, axis in zip(columns, axes, strict=True):
        for text, roles in rows:
            text[column], roles[column] = "│", AXIS
        for label, value in axis.ticks:
            text, roles = rows[dot_row(value) >> 2]
            text[column], roles[column] = "┤", AXIS
            for at, letter in enumerate(label[:LABEL_WIDTH], column + 1):
                if at < width:
                    text[at], roles[at] = letter, LABEL
    return [_titles(axes, columns, width), *(("".join(text), bytes(roles)) for text, roles in rows)]


def _titles(axes: Sequence[Axis], columns: Sequence[int], width: int) -> Row:
    """The axes' names over them, each cut where the next begins."""
    text = [" "] * width
    for at, (column, axis) in enumerate(zip(columns, axes, strict=True)):
        end = columns[at + 1] - 1 if at + 1 < len(columns) else width
        for place, letter in zip(range(column, end), axis.title, strict=False):
            text[place] = letter
    return "".join(text), bytes([LABEL] * width)


def _read_numbers(values: Sequence[str]) -> list[float] | None:
    """The values as numbers; None if one is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None
