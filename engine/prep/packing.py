"""Best-fit packing: whole rows into sequences of at most `capacity` tokens. Nothing is cut and nothing thrown away.

Longest rows first, each into the fullest sequence that still has room for it (best-fit decreasing; Johnson 1974). Lengths are
bounded, so the open sequences are kept by the room that they have left and a bit mask finds the tightest fit.
"""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Sequences as lists of row indices, in the order in which they were opened. Deterministic. No length exceeds `capacity`."""
    sequences: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while a sequence has room for r more tokens
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        assert 0 < length <= capacity, (length, capacity)
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, sequence = capacity, len(sequences)
            sequences.append([])
        sequences[sequence].append(index)
        by_room[room - length].append(sequence)
        rooms |= 1 << (room - length)
    return sequences
