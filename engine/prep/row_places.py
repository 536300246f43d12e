"""Where prepared training rows come from: the file and the line of each part of a training set.

A cache entry keeps them in `FILE`, two uint32 for each part: the file's number among the sources' files, which
`prepared.json` lists in the same order (`files`, `sources`), and its line, from 1. A part is a row, or one of the
sequences that a packed row or a block joins. Entries that are older than this file have none, nor have sets that were
tokenised elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "train.places.bin"


def encode(places: Sequence[tuple[int, int]]) -> bytes:
    """The bytes of these (file, line)."""
    import numpy

    return numpy.array(places, dtype="<u4").tobytes()


def read(entry: Path) -> Any:
    """The places [parts, 2] of a cache entry; None if it has none."""
    import numpy

    path = entry / FILE
    return numpy.fromfile(path, dtype="<u4").reshape(-1, 2) if path.is_file() else None


def reorder(entry: Path, rows: Any) -> None:
    """Make the places of rows those of parts, each of which is one of these rows."""
    (entry / FILE).write_bytes(read(entry)[rows].tobytes())


def divide(entry: Path, lengths: Any, capacity: int) -> None:
    """Make the places of rows of these lengths those of the parts into which blocks of `capacity` tokens cut them."""
    import numpy

    ends = numpy.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = numpy.union1d(ends, numpy.arange(1, total // capacity + 1) * capacity)
    reorder(entry, numpy.searchsorted(ends, cuts))
