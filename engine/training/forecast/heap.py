"""The heap of a process that computes on a CPU: what it holds of blocks that come and go.

Workers keep what they free (`WORKER_DEFAULTS` in `engine.supervisor.processes`), so a process never gets smaller, and a
block goes into the smallest gap that is large enough, or else on top (glibc's malloc). Gaps of freed activations
between gradients that stay are too small for the optimiser's large blocks, for example.
"""

from __future__ import annotations

from bisect import bisect_left, insort

ALIGNMENT = 64
"""Bytes to which torch aligns blocks."""
SEARCHED = 2 * ALIGNMENT
"""Bytes beyond a block's own for which glibc searches a gap, to be sure to find an aligned place in it (before glibc
2.38): a block does not fit into the gap of another one of its size."""


class Heap:
    """Blocks by address. `high` is the highest address so far: what the process holds."""

    def __init__(self) -> None:
        self.high = 0
        self._top = 0
        self._gaps: list[tuple[int, int]] = []
        """Size and address of each gap below the top, sorted."""
        self._starts: dict[int, int] = {}
        """Address of a gap -> its size."""
        self._ends: dict[int, int] = {}
        """Address behind a gap -> the gap's own."""

    def allocate(self, size: int) -> int:
        """The address of a new block."""
        size = _round(size)
        place = bisect_left(self._gaps, (size + SEARCHED, 0))
        if place == len(self._gaps):
            address, self._top = self._top, self._top + size
            self.high = max(self.high, self._top)
            return address
        found, address = self._gaps[place]
        self._remove(address, found)
        if found > size:
            self._add(address + size, found - size)
        return address

    def free(self, address: int, size: int) -> None:
        """Give back a block of this size; it grows together with the gaps beside it."""
        size = _round(size)
        if (before := self._ends.get(address)) is not None:
            length = self._starts[before]
            self._remove(before, length)
            address, size = before, size + length
        if (length := self._starts.get(address + size, 0)) > 0:
            self._remove(address + size, length)
            size += length
        if address + size == self._top:
            self._top = address
        else:
            self._add(address, size)

    def _add(self, address: int, size: int) -> None:
        insort(self._gaps, (size, address))
        self._starts[address], self._ends[address + size] = size, address

    def _remove(self, address: int, size: int) -> None:
        del self._gaps[bisect_left(self._gaps, (size, address))]
        del self._starts[address], self._ends[address + size]


def _round(size: int) -> int:
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT
