"""A metric over steps in bounded memory. Pure Python, because importing numpy alone would take 155 ms at start-up."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

CAPACITY = 2048
"""Buckets of a curve. When there are more, neighbours are merged in pairs."""


class Bucket(NamedTuple):
    """The steps first…last: their extremes, and a middle value for the smoothed line."""

    first: int
    last: int
    low: float
    high: float
    middle: float


class Curve:
    """Buckets by ascending step."""

    def __init__(self, buckets: Sequence[Bucket] = ()) -> None:
        self._buckets = list(buckets)
        self._span = 1
        """Points in a full bucket. It doubles when neighbours are merged."""
        self._filled = 1
        """Points in the newest bucket."""

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def first(self) -> int:
        return self._buckets[0].first if self._buckets else 0

    @property
    def last(self) -> int:
        return self._buckets[-1].last if self._buckets else 0

    @property
    def newest(self) -> float | None:
        return self._buckets[-1].middle if self._buckets else None

    def append(self, step: int, value: float) -> bool:
        """Append a point. Returns False, and ignores the point, when it is not after the newest step."""
        if self._buckets and step <= self.last:
            return False
        point = Bucket(step, step, value, value, value)
        if self._filled < self._span and self._buckets:
            self._buckets[-1] = _merge(self._buckets[-1], point, self._filled)
            self._filled += 1
            return True
        self._buckets.append(point)
        self._filled = 1
        if len(self._buckets) > CAPACITY:
            pairs = zip(self._buckets[::2], self._buckets[1::2], strict=False)
            rest = self._buckets[-1:] if len(self._buckets) % 2 else []
            self._buckets = [_merge(left, right, 1) for left, right in pairs] + rest
            self._span *= 2
        return True

    def between(self, first: int, last: int) -> Iterator[Bucket]:
        """The buckets that overlap the steps first…last."""
        start = bisect_left(self._buckets, first, key=lambda bucket: bucket.last)
        stop = bisect_right(self._buckets, last, key=lambda bucket: bucket.first)
        return iter(self._buckets[start:stop])


def _merge(left: Bucket, right: Bucket, weight: int) -> Bucket:
    """Both buckets as one. `weight` is the weight of the left middle, in points of `right`."""
    middle = (left.middle * weight + right.middle) / (weight + 1)
    return Bucket(left.first, right.last, min(left.low, right.low), max(left.high, right.high), middle)
