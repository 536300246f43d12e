"""How much has been read of journals that the registry has not stored yet: reading is faster, and must wait for it."""

from __future__ import annotations

import threading

MOST = 8
"""Parts of journals that may wait: each has at most `run_record.BYTES_PER_TURN` of one."""
PATIENCE = 60.0
"""Seconds after which a start goes on although the registry's disk does not answer."""


class Unstored:
    """Counts parts that were given to the registry's thread. Its methods may be called by any thread."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self._count, self._less = most, 0, threading.Condition()

    def add(self) -> None:
        with self._less:
            self._count += 1

    def remove(self) -> None:
        with self._less:
            self._count -= 1
            self._less.notify_all()

    @property
    def full(self) -> bool:
        return self._count >= self.most

    def wait(self) -> None:
        """Return when there is room for another part."""
        with self._less:
            self._less.wait_for(lambda: not self.full, PATIENCE)
