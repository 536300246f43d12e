"""Parquet, in batches of about equal size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engine.prep.files.columnar import BYTES, to_records
from engine.prep.files.record import Record


def read(stream: BinaryIO, path: Path) -> Iterator[Record]:
    """Raises ValueError for a file that is not Parquet or is damaged."""
    return to_records(_batches(stream), path)


def _batches(stream: BinaryIO) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    # Without a buffer size, whole column chunks would be loaded, up to a gigabyte.
    file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        rows = max(1, min(1024, BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
        yield from file.iter_batches(rows, row_groups=[group], use_threads=False)
