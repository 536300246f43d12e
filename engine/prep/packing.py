"""Best-fit packing: whole rows into sequences of at most `capacity` tokens. No row is cut or dropped.

Longest rows first, each into the fullest sequence that still has room for it (best-fit decreasing; Johnson 1974).
Lengths are bounded, so the open sequences are indexed by their remaining room, and a bit mask finds the tightest fit. A
row costs a few bytes of memory and a microsecond.
"""

from __future__ import annotations

from array import array
from typing import Any


def pack(lengths: Any, capacity: int) -> tuple[Any, Any]:
    """Row numbers, sequence after sequence, and the number of rows in each sequence: int64 arrays. Deterministic.

    `lengths`: an array or list of tokens of each row, each from 1 to `capacity`. Sequences come in the order in which
    they were opened.
    """
    import numpy

    lengths = numpy.asarray(lengths, dtype=numpy.int64)
    assert not len(lengths) or 0 < lengths.min() <= lengths.max() <= capacity, (lengths.min(), lengths.max(), capacity)
    longest_first = numpy.argsort(-lengths, kind="stable")
    chosen = array("q")
    """The sequence of each row, longest row first."""
    newest = array("q", [-1]) * (capacity + 1)
    """By remaining room: the sequence that reached it last …"""
    older = array("q")
    """… and for each sequence the one that had reached the same room before it."""
    rooms = 0  # bit r is set while some sequence has room for exactly r more tokens
    for length in _iterate_lengths(lengths, longest_first):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = newest[room]
            newest[room] = older[sequence]
            if newest[room] < 0:
                rooms &= ~(1 << room)
        else:
            room, sequence = capacity, len(older)
            older.append(-1)
        chosen.append(sequence)
        left = room - length
        older[sequence], newest[left] = newest[left], sequence
        rooms |= 1 << left
    sequences = numpy.frombuffer(chosen, dtype=numpy.int64) if chosen else numpy.zeros(0, dtype=numpy.int64)
    together = numpy.argsort(sequences, kind="stable")
    return longest_first[together], numpy.bincount(sequences, minlength=len(older))


def _iterate_lengths(lengths: Any, order: Any) -> Any:
    """The lengths in that order as integers, a piece at a time."""
    for first in range(0, len(order), 2**16):
        yield from lengths[order[first : first + 2**16]].tolist()
