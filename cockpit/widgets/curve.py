"""A metric over steps in bounded memory. Pure Python, because importing numpy alone would take 155 ms at start-up."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

CAPACITY = 2048
"""Buckets of a curve. When there are more, neighbours are merged in pairs."""


class Bucket(NamedTuple):
    """The steps first…last: their extremes, their mean or newest value for the line, and how many points they have."""

    first: int
    last: int
    low: float
    high: float
    middle: float
    points: float = 1


class Curve:
    """Buckets by ascending step."""

    def __init__(self, buckets: Sequence[Bucket] = ()) -> None:
        self._buckets = list(buckets)
        self._span = 1
        """Points in a full bucket. It doubles when neighbours are merged."""
        self._filled = 1
        """Points in the newest bucket."""
        self.merges = 0
        """How often neighbours were merged: until then only the newest bucket changes, and new ones follow it."""
        self.version = 0
        """How many points were appended."""

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
        self.version += 1
        if self._filled < self._span and self._buckets:
            self._buckets[-1] = _merge(self._buckets[-1], point)
            self._filled += 1
            return True
        self._buckets.append(point)
        self._filled = 1
        if len(self._buckets) > CAPACITY:
            pairs = zip(self._buckets[::2], self._buckets[1::2], strict=False)
            rest = self._buckets[-1:] if len(self._buckets) % 2 else []
            self._buckets = [_merge(left, right) for left, right in pairs] + rest
            self._span *= 2
            self.merges += 1
        return True

    def __getitem__(self, at: int) -> Bucket:
        return self._buckets[at]

    def find(self, step: float) -> int:
        """The index of the first bucket that does not end before `step`."""
        return bisect_left(self._buckets, step, key=lambda bucket: bucket.last)

    def between(self, first: float, last: float) -> Iterator[Bucket]:
        """The buckets that overlap the steps first…last."""
        stop = bisect_right(self._buckets, last, key=lambda bucket: bucket.first)
        return iter(self._buckets[self.find(first) : stop])

    def buckets_from(self, at: int) -> Iterator[Bucket]:
        return islice(self._buckets, at, None)

    def nearest(self, step: float) -> Bucket | None:
        """The bucket closest to `step`; None for an empty curve."""
        at = self.find(step)
        near = self._buckets[max(0, at - 1) : at + 1]
        return min(near, key=lambda each: max(each.first - step, step - each.last, 0), default=None)


def _merge(left: Bucket, right: Bucket) -> Bucket:
    """Both buckets as one."""
    count = left.points + right.points
    middle = (left.middle * left.points + right.middle * right.points) / count
    return Bucket(left.first, right.last, min(left.low, right.low), max(left.high, right.high), middle, count)
