"""Packing: nothing lost, nothing too long, close to the optimum."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from engine.prep.packing import pack


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    order, sizes = pack(lengths, capacity)
    rows = iter(order.tolist())
    return [[next(rows) for _ in range(size)] for size in sizes.tolist()]


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_row_is_in_exactly_one_sequence_that_fits(lengths: list[int]) -> None:
    sequences = packed(lengths, 50)
    assert sorted(index for sequence in sequences for index in sequence) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in sequence) <= 50 for sequence in sequences)
    # Best-fit decreasing needs at most 11/9 of the optimum plus one; the optimum is at least the sum over the capacity.
    fullest = max(-(-sum(lengths) // 50), sum(length > 25 for length in lengths))
    assert len(sequences) <= 2 * fullest


def test_the_tightest_fit_is_taken() -> None:
    # 7 opens a, 6 opens b; 3 fits both and goes where it fills; then 4 fills b.
    assert packed([6, 7, 3, 4], 10) == [[1, 2], [0, 3]]


def test_a_row_costs_microseconds_and_bytes() -> None:
    import tracemalloc

    import numpy

    lengths = numpy.random.default_rng(0).integers(1, 1025, 100_000)
    tracemalloc.start()
    began = time.process_time()
    _, sizes = pack(lengths, 1024)
    assert time.process_time() - began < 5  # tracing included: 0.1 s without
    assert tracemalloc.get_traced_memory()[1] < 100 * len(lengths)
    tracemalloc.stop()
    assert lengths.sum() / (len(sizes) * 1024) > 0.99
