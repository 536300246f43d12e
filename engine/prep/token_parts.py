"""The parts of a tokenised training set, in the order in which `row_places` and the ledger of rows number them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.prep.token_rows import MASKED


class Parts(NamedTuple):
    """Some parts, one after the other: their lengths in tokens, and the ids and labels of all of them."""

    lengths: Any
    ids: Any
    labels: Any


class TokenParts:
    """A set of labelled tokens, plain or joined, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for a set of other rows, and OSError."""
        import numpy

        self._batches = list(_open_batches(folder))
        lengths = [numpy.zeros(0, dtype=numpy.int64), *(_part_lengths(batch) for batch in self._batches)]
        self.firsts = numpy.cumsum([0, *map(len, lengths[1:])])
        """The number of the first part of each batch, and the number of parts."""
        self.lengths = numpy.concatenate(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self) -> Iterator[Parts]:
        """All parts in order, batch by batch."""
        for batch in self._batches:
            yield Parts(_part_lengths(batch), *(_values(batch, name) for name in ("input_ids", "labels")))

    def count_trained(self) -> Any:
        """The number of trained tokens of each part. The first token of a part is never trained."""
        import numpy

        counts = [numpy.zeros(0, dtype=numpy.int64)]
        for lengths, _, labels in self.batches():
            trained = labels != MASKED
            starts = numpy.cumsum(lengths) - lengths
            trained[starts[lengths > 0]] = False
            counts.append(
                numpy.diff(numpy.concatenate([[0], numpy.cumsum(trained)])[numpy.append(starts, len(labels))])
            )
        return numpy.concatenate(counts)

    def take(self, part: int) -> tuple[list[int], list[int]]:
        """The ids and labels of a part."""
        import numpy

        number = int(numpy.searchsorted(self.firsts, part, side="right")) - 1
        batch = self._batches[number]
        ends = numpy.cumsum(_part_lengths(batch))
        end = int(ends[part - self.firsts[number]])
        begin = end - int(self.lengths[part])
        ids, labels = (_values(batch, name)[begin:end].tolist() for name in ("input_ids", "labels"))
        return ids, labels


def _open_batches(folder: Path) -> Iterator[Any]:
    import pyarrow as pa

    for part in json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        with (folder / part["filename"]).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_stream(pa.py_buffer(mapped)) as stream:
            if "labels" not in stream.schema.names:
                raise ValueError(f"{folder} holds no labelled tokens")
            yield from stream


def _part_lengths(batch: Any) -> Any:
    """The lengths of the parts of a batch: of its rows, or of the sequences that they join."""
    import numpy

    if "seq_lengths" in batch.schema.names:
        return _values(batch, "seq_lengths").astype(numpy.int64)
    return numpy.diff(batch.column("input_ids").offsets.to_numpy()).astype(numpy.int64)


def _values(batch: Any, name: str) -> Any:
    column = batch.column(name)
    offsets = column.offsets.to_numpy()
    return column.values.to_numpy()[offsets[0] : offsets[-1]]
