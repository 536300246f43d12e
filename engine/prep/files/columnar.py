"""Arrow batches to records, for Arrow and Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.prep.files.record import Record
from engine.prep.formats.cells import drop_nulls

_ROWS = 1024
"""Rows converted to Python objects at a time."""
BYTES = 16 * 2**20
"""Bytes of such a slice, roughly."""
_UNREADABLE = (ValueError, TypeError, LookupError, OverflowError, RecursionError)
"""What pyarrow raises, besides its own exceptions, for values that Python cannot represent; LookupError for such
types."""


def to_records(batches: Iterator[Any], path: Path) -> Iterator[Record]:
    """The rows of `pyarrow.RecordBatch`es as JSON values: times in ISO form, decimals as text, bytes in base64, NaN as
    null.

    A nested struct has a value for each of its fields, null for those that a row does not have: these are left out.
    """
    import pyarrow as pa

    name, line = str(path), 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (pa.ArrowException, OSError, EOFError, *_UNREADABLE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk, not of the file
            raise ValueError(f"it is damaged, or no {path.suffix} file: {error}") from error
        step = max(1, min(_ROWS, BYTES * batch.num_rows // max(1, batch.get_total_buffer_size())))
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            try:
                values: list[Any] = _decode_batch(part)
            except (*_UNREADABLE, pa.ArrowException):
                values = [_decode_row(part.slice(index, 1)) for index in range(part.num_rows)]
            for value in values:
                line += 1
                known = isinstance(value, dict)
                yield Record(name, line, 0, 0, value if known else None, "" if known else value)


def _decode_batch(batch: Any) -> list[dict[str, Any]]:
    # A damaged file may have offsets outside its buffers; reading them unchecked could crash the process.
    batch.validate(full=True)
    values: list[dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(batch.to_pylist()))
    for name in (field.name for field in batch.schema if _has_struct(field.type)):
        for row in values:
            row[name] = drop_nulls(row[name])
    return values


def _has_struct(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return True
    return any(_has_struct(kind.field(index).type) for index in range(kind.num_fields))


def _decode_row(row: Any) -> dict[str, Any] | str:
    """The row, or the reason why it cannot be read."""
    import pyarrow as pa

    try:
        return _decode_batch(row)[0]
    except (*_UNREADABLE, pa.ArrowException) as error:
        return f"a value cannot be read: {error}"
