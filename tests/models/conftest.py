"""Rows for tiny models."""

from __future__ import annotations

import random

import pytest


@pytest.fixture
def rows() -> list[dict[str, list[int]]]:
    """Rows shorter and longer than the window."""
    numbers = random.Random(1)
    drawn = [[numbers.randrange(3, 63) for _ in range(length)] for length in (3, 17, 6, 25)]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]
