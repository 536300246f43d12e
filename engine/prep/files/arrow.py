"""Arrow IPC, both the stream format (which `datasets` writes) and the file format (also called Feather), batch by
batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engine.prep.files.columnar import to_records
from engine.prep.files.record import Record

_FILE = b"ARROW1"


def read(stream: BinaryIO, path: Path) -> Iterator[Record]:
    """Raises ValueError for a file that is neither or is damaged."""
    return to_records(_batches(stream), path)


def _batches(stream: BinaryIO) -> Iterator[Any]:
    import pyarrow as pa

    magic = stream.read(len(_FILE))
    stream.seek(0)
    if magic != _FILE:
        yield from pa.ipc.open_stream(stream)
        return
    file = pa.ipc.open_file(stream)
    for index in range(file.num_record_batches):
        yield file.get_batch(index)
