"""How many of the training rows repeat another one, token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

SECONDS = 0.5
"""How long it may take. Of a large set, the rows that were looked at until then count."""
FEWEST = 20
"""Rows from which a share says something."""


def count_duplicates(rows: Sequence[dict[str, Any]], seconds: float = SECONDS) -> float:
    """The share of rows that repeat an earlier one; joined rows are taken apart."""
    seen: set[int] = set()
    looked_at = 0
    until = time.monotonic() + seconds
    for index in range(len(rows)):
        for row in _split(rows[index]):
            seen.add(hash(row))
            looked_at += 1
        if time.monotonic() > until:
            break
    return 1 - len(seen) / looked_at if looked_at >= FEWEST else 0.0


def _split(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    ids = row.get("input_ids")
    if ids is None:
        return [tuple((name, str(row[name])) for name in sorted(row))]
    start, parts = 0, []
    for length in row.get("seq_lengths") or [len(ids)]:
        parts.append(tuple(ids[start : start + length]))
        start += length
    return parts
