"""Packing: nothing lost, nothing too long, close to the optimum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.prep.packing import pack


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_row_is_in_exactly_one_sequence_that_fits(lengths: list[int]) -> None:
    sequences = pack(lengths, 50)
    assert sorted(index for sequence in sequences for index in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in sequence) <= 50 for sequence in sequences)
    # Best-fit decreasing needs at most 11/9 of the optimum plus one; the optimum is at least the sum over the capacity.
    fullest = max(-(-sum(lengths) // 50), sum(length > 25 for length in lengths))
    assert len(sequences) <= 2 * fullest


def test_the_tightest_fit_is_taken() -> None:
    # 7 opens a, 6 opens b; 3 fits both and goes where it fills; then 4 fills b.
    assert pack([6, 7, 3, 4], 10) == [[1, 2], [0, 3]]
