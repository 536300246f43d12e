"""The ledger of rows: each training row's loss in each epoch, in files of a run's folder `row_losses/`.

Every rank of an attempt appends to a file of its own, a block for each step: a header, the numbers of the rows (uint32)
and their mean losses (float16). A block whose end is missing, as after a kill, is ignored. An attempt, and a rewind
within one, begins with a header that says which step follows: what earlier blocks have of that step and of later ones
is computed again, and no longer counts. So a resumed run has the ledger of one that was never interrupted.

A row is a part of the training set: a row of tokens, or one of the sequences that a packed row or a block joins, in
their order.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.protocol import attempt_fence

_HEADER = struct.Struct("<4sIII")
"""Mark, step, epoch (from 0) and number of rows."""
_BLOCK, _REWIND = b"rows", b"back"
_NAME = re.compile(r"attempt-(\d+)\.rank-(\d+)\.bin")
_ROW = 4 + 2
"""Bytes of a row."""


class Block(NamedTuple):
    """The rows of a step on a rank. `step` steps precede it."""

    step: int
    epoch: int
    rows: Any
    losses: Any


class RowLossWriter:
    """A rank's file of an attempt. Each call is one write, so that a kill costs the step that is under way at most."""

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        attempt_fence.check()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"attempt-{attempt:04}.rank-{rank:04}.bin").open("ab", buffering=0)

    def rewind(self, step: int) -> None:
        """What follows are the rows of `step` and of later steps."""
        self._append(_HEADER.pack(_REWIND, step, 0, 0))

    def add(self, step: int, epoch: int, rows: Any, losses: Any) -> None:
        """Append the mean losses of these rows, arrays of floats and of numbers, in the step that follows `step`
        steps."""
        import numpy

        self._append(
            _HEADER.pack(_BLOCK, step, epoch, len(rows))
            + numpy.asarray(rows, dtype="<u4").tobytes()
            + numpy.asarray(losses).astype("<f2").tobytes()
        )

    def _append(self, content: bytes) -> None:
        """Raises OSError, with nothing written, on a full disk: what came behind half a block could not be read."""
        attempt_fence.check()
        begin = self._file.seek(0, os.SEEK_END)
        written = self._file.write(content)
        if written != len(content):
            self._file.truncate(begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def read_row_losses(folder: Path, rows: int) -> Any:
    """The losses [epochs, rows] in float32, in order; NaN where a row was not trained in an epoch. Empty without a
    ledger."""
    import numpy

    blocks = read_blocks(folder)
    table = numpy.full((max((block.epoch + 1 for block in blocks), default=0), rows), numpy.nan, dtype=numpy.float32)
    for block in blocks:
        known = block.rows < rows
        table[block.epoch, block.rows[known]] = block.losses[known]
    return table


def read_blocks(folder: Path) -> list[Block]:
    """The blocks that count, by step."""
    kept: list[Block] = []
    for paths in _list_attempts(folder):
        read = [list(_read_file(path)) for path in paths]
        begin = min((block.step for blocks in read for block in blocks), default=None)  # also after a rewind within it
        if begin is not None:
            kept = [block for block in kept if block.step < begin]
        for blocks in read:
            kept += _drop_rewound(blocks)
    return sorted(kept, key=lambda block: block.step)


def _list_attempts(folder: Path) -> list[list[Path]]:
    """The files of each attempt, in the order of the attempts."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.bin")):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(int(match[1]), []).append(path)
    return [found[attempt] for attempt in sorted(found)]


def _read_file(path: Path) -> Iterator[Block]:
    """The complete blocks of a file; one without rows is a rewind."""
    import numpy

    content = path.read_bytes()
    at = 0
    while at + _HEADER.size <= len(content):
        mark, step, epoch, count = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        if mark not in (_BLOCK, _REWIND) or at + count * _ROW > len(content):
            return
        rows = numpy.frombuffer(content, "<u4", count, at)
        losses = numpy.frombuffer(content, "<f2", count, at + 4 * count)
        yield Block(step, epoch if mark == _BLOCK else -1, rows, losses)
        at += count * _ROW


def _drop_rewound(blocks: list[Block]) -> list[Block]:
    kept: list[Block] = []
    for block in blocks:
        if block.epoch < 0:
            kept = [each for each in kept if each.step < block.step]
        else:
            kept.append(block)
    return kept
