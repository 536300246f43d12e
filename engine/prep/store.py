"""Tokens on disk: Arrow sets that `datasets.load_from_disk` maps into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.prep.packing import pack
from engine.prep.tokenize import Tokens

_ROWS = 1000
"""Rows in one Arrow batch."""


def write(tokens: Iterable[Tokens], folder: Path) -> None:
    """One row each: `input_ids` and `labels`, lists of int32."""
    _write(({"input_ids": each.ids, "labels": each.labels} for each in tokens), ("input_ids", "labels"), folder)


def write_packed(plain: Path, folder: Path, capacity: int) -> int:
    """The set in `plain`, several rows to a sequence. Returns the number of sequences.

    `position_ids` restart at 0 with each row and `seq_lengths` are the rows' lengths: attention must not cross them.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(plain))
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    lengths = pc.list_value_length(rows.data.column("input_ids")).to_pylist()
    sequences = pack(lengths, capacity)

    def joined() -> Iterator[dict[str, list[int]]]:
        for sequence in sequences:
            parts = rows[sequence]
            sizes = [len(ids) for ids in parts["input_ids"]]
            yield {
                "input_ids": [token for ids in parts["input_ids"] for token in ids],
                "labels": [token for labels in parts["labels"] for token in labels],
                "position_ids": [place for size in sizes for place in range(size)],
                "seq_lengths": sizes,
            }

    _write(joined(), ("input_ids", "labels", "position_ids", "seq_lengths"), folder)
    return len(sequences)


def _write(rows: Iterable[dict[str, list[int]]], columns: tuple[str, ...], folder: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    schema = pa.schema([(column, pa.list_(pa.int32())) for column in columns])
    stream = folder.with_name(f"{folder.name}.arrow")
    with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        batch: list[dict[str, list[int]]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS:
                writer.write_batch(_batch(batch, schema))
                batch = []
        writer.write_batch(_batch(batch, schema))
    set_: Any = Dataset.from_file(str(stream))
    set_.save_to_disk(str(folder))
    del set_
    stream.unlink()


def _batch(rows: list[dict[str, list[int]]], schema: Any) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    return pa.record_batch(
        [pa.array([row[name] for row in rows], type=pa.list_(pa.int32())) for name in schema.names], schema=schema
    )
