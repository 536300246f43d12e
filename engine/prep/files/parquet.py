"""Parquet, by batches of about the same size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engine.prep.files.columnar import BYTES, to_records
from engine.prep.files.record import Record


def read(stream: BinaryIO, path: Path) -> Iterator[Record]:
    """Raises ValueError for a file that is none, or damaged."""
    return to_records(_batches(stream), path)


def _batches(stream: BinaryIO) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    # Without the buffer whole column chunks would be held, which may be a gigabyte.
    file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group)
        rows = max(1, min(1024, BYTES * told.num_rows // max(1, told.total_byte_size)))
        yield from file.iter_batches(rows, row_groups=[group], use_threads=False)
