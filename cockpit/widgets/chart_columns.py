"""Reduces a curve to the dot columns of a plot, and smooths it. Pure.

A plot of a growing curve keeps its range for a while. Meanwhile only the newest columns are computed again, so that a
frame costs as much for a million points as for a hundred.
"""

from __future__ import annotations

from typing import NamedTuple

from cockpit.widgets.chart_axes import STEPS, Mapping
from cockpit.widgets.curve import Curve

SMOOTHINGS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
"""The smoothings that a key goes through."""


class Column(NamedTuple):
    """A dot column of a plot: extremes and mean of the points in it, and the smoothed line there."""

    at: int
    low: float
    high: float
    mean: float
    smooth: float
    points: float


class _Open(NamedTuple):
    """What is known before a bucket: the state of the smoothing, and the column that is not finished yet."""

    level: float = 0.0
    weight: float = 0.0
    at: int = -1
    low: float = 0.0
    high: float = 0.0
    total: float = 0.0
    points: float = 0.0


class Columns:
    """The columns of one curve, computed again only as far as curve or plot have changed."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._version = -1
        self._newest, self._finished = 0, 0
        """The newest bucket, which may still change, and how many columns were finished before it."""
        self._open = _Open()
        self.columns: list[Column] = []

    def update(
        self, curve: Curve, first: float, last: float, dots: int, smoothing: float, mapping: Mapping = STEPS
    ) -> list[Column]:
        """One column for each dot column that the curve has points in, from left to right, of a plot from `first` to
        `last`. A bucket that is wider than a column is in all that it covers."""
        key = (id(curve), curve.merges, first, last, dots, smoothing, mapping)
        if key != self._key:
            self._key, self._version, self._newest, self._finished, self._open = key, -1, 0, 0, _Open()
        if curve.version != self._version:
            self._version = curve.version
            del self.columns[self._finished :]
            self._extend(curve, first, last, dots - 1, smoothing, mapping)
        return self.columns

    def _extend(self, curve: Curve, left: float, right: float, wide: int, smoothing: float, mapping: Mapping) -> None:
        kept, newest = self.columns, len(curve) - 1
        level, weight, at, low, high, total, count = self._open
        plain = mapping is STEPS
        scaling = wide / ((right - left) or 1.0)
        for index in range(self._newest, newest + 1):
            bucket = curve[index]
            if index == newest:
                self._newest, self._finished = index, len(kept)
                self._open = _Open(level, weight, at, low, high, total, count)
            first, last = (
                (bucket[0], bucket[1]) if plain else (mapping.position(bucket[0]), mapping.position(bucket[1]))
            )
            if first > right:
                continue
            level_before, weight_before = level, weight
            level, weight = ema(level, weight, bucket.middle, bucket.points, smoothing)
            if last < left:
                continue
            start = max(0, min(wide, round((first - left) * scaling)))
            stop = start if first == last else max(0, min(wide, round((last - left) * scaling)))
            if start != at:
                if at >= 0:
                    kept.append(Column(at, low, high, total / count, level_before / (weight_before or 1.0), count))
                at, low, high, total, count = start, bucket.low, bucket.high, 0.0, 0.0
            elif bucket.low < low or bucket.high > high:
                low, high = min(low, bucket.low), max(high, bucket.high)
            total += bucket.middle * bucket.points
            count += bucket.points
            for between in range(start, stop):
                kept.append(Column(between, low, high, total / count, level / (weight or 1.0), count))
                low, high, total, count = bucket.low, bucket.high, bucket.middle * bucket.points, bucket.points
            at = stop
        if at >= 0:
            kept.append(Column(at, low, high, total / count, level / (weight or 1.0), count))


def ema(level: float, weight: float, mean: float, count: float, smoothing: float) -> tuple[float, float]:
    """The exponential moving average after `count` further points of this mean, as (sum, weight); their ratio is the
    average without the bias of a start at zero."""
    if not smoothing:
        return mean, 1.0
    keep = smoothing if count == 1 else smoothing**count
    return level * keep + mean * (1 - keep), weight * keep + 1 - keep


def envelope(columns: list[Column], reach: int) -> list[tuple[int, float, float]]:
    """For each column its extremes together with those of the columns up to `reach` before it, which its smoothed value
    comes from: the measured band."""
    if not reach:
        return [(column.at, column.low, column.high) for column in columns]
    found = []
    start = 0
    for index, column in enumerate(columns):
        while columns[start].at < column.at - reach:
            start += 1
        near = columns[start : index + 1]
        found.append((column.at, min(each.low for each in near), max(each.high for each in near)))
    return found


def band_reach(columns: list[Column], smoothing: float, dots: int) -> int:
    """How many dot columns back the band takes its extremes from: about as many points as the smoothing averages, at
    most a tenth of the plot, and at least two points."""
    if not smoothing or len(columns) < 2:
        return 0
    span = columns[-1].at - columns[0].at
    apart = max(1, -(-span // (len(columns) - 1)))
    points = sum(column.points for column in columns) / max(1, span)
    return max(2 * apart, min(dots // 10, round(1 / (1 - smoothing) / max(points, 1e-9))))
