"""Which way a metric improves."""

from __future__ import annotations

from enum import IntEnum


class Direction(IntEnum):
    """The sign of an improvement; in JSON it is the number."""

    LOWER = -1
    NEITHER = 0
    """A description such as a length: no value is better than another."""
    HIGHER = 1
