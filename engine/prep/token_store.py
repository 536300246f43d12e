"""Token sets on disk: folders of Arrow streams that `datasets.load_from_disk` maps into memory.

A plain set has a row of `input_ids` and `labels` for each source row. In a joined set (packed rows, or blocks of
documents) a row is a sequence of several parts: `position_ids` restart at 0 with each part, and `seq_lengths` are the
parts' lengths; attention must not cross from one part to another. All columns except `TEXTS` are lists of int32.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.prep.packing import pack
from engine.prep.token_rows import JOINED, MASKED, PLAIN, TEXTS, Columns, Counts, Tokens

Progress = Callable[[int, int], object]

_ROWS = 1000
"""Rows in one Arrow batch."""
_TOUCHED = 64 * 2**20
"""Bytes of a mapped set that are read before its pages are released."""


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def arrow_writer(path: Path, columns: tuple[str, ...]) -> Iterator[Callable[[Columns], None]]:
    """Opens an Arrow stream; yields a function that writes rows, one Arrow batch per call."""
    import numpy
    import pyarrow as pa

    schema = _schema(columns)

    def write(rows: Columns) -> None:
        arrays = []
        for column in columns:
            values, lengths = rows[column]
            if column in TEXTS:
                arrays.append(pa.array(values, pa.string()))
                continue
            offsets = numpy.zeros(len(lengths) + 1, dtype=numpy.int32)
            numpy.cumsum(lengths, out=offsets[1:])
            arrays.append(pa.ListArray.from_arrays(_wrap(offsets), _wrap(numpy.asarray(values, dtype=numpy.int32))))
        writer.write_batch(pa.record_batch(arrays, schema=schema))

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        yield write


def _wrap(numbers: Any) -> Any:
    """The Arrow array over the memory of a numpy array of int32. (`pyarrow.array` would import pandas first.)"""
    import numpy
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numpy.ascontiguousarray(numbers))])


def _schema(columns: tuple[str, ...]) -> Any:
    import pyarrow as pa

    return pa.schema([(name, pa.string() if name in TEXTS else pa.list_(pa.int32())) for name in columns])


@contextmanager
def link_streams(folder: Path, columns: tuple[str, ...] = PLAIN) -> Iterator[Callable[[Path], None]]:
    """Makes a set from complete Arrow streams, in the order given. The streams may be removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []

    def link(stream: Path) -> None:
        part = folder / f"part-{len(parts):06}.arrow"
        part.unlink(missing_ok=True)
        try:
            os.link(stream, part)
        except OSError:  # the file system has no hard links
            shutil.copyfile(stream, part)
        parts.append(part)

    yield link
    if not parts:
        parts.append(folder / "part-000000.arrow")
        with arrow_writer(parts[0], columns) as write:
            write({column: ([], []) for column in columns})
    _describe(folder, parts, columns)


@contextmanager
def _open_set(folder: Path, columns: tuple[str, ...]) -> Iterator[Callable[[Columns], None]]:
    """Makes a set of one stream; yields a function that writes rows."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "part-000000.arrow"
    with arrow_writer(part, columns) as write:
        yield write
    _describe(folder, [part], columns)


def _describe(folder: Path, parts: list[Path], columns: tuple[str, ...]) -> None:
    """Write the files that `datasets` expects beside the streams, as it would. The fingerprint, which keys its caches,
    is a hash of the content."""
    text, ids = ({"dtype": name, "_type": "Value"} for name in ("string", "int32"))
    features = {name: text if name in TEXTS else {"feature": ids, "_type": "List"} for name in columns}
    info = {"description": "", "citation": "", "homepage": "", "license": "", "features": features}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    state: dict[str, Any] = {
        "_data_files": [{"filename": part.name} for part in parts],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")


def write(tokens: Iterable[Tokens], folder: Path) -> None:
    """Write a stream of rows as a plain set."""
    with _open_set(folder, PLAIN) as out:
        some: list[Tokens] = []
        for each in tokens:
            some.append(each)
            if len(some) == _ROWS:
                out(_to_columns(some))
                some = []
        out(_to_columns(some))


def _to_columns(tokens: list[Tokens]) -> Columns:
    lengths = [len(each.ids) for each in tokens]
    ids = [token for each in tokens for token in each.ids]
    return {"input_ids": (ids, lengths), "labels": ([label for each in tokens for label in each.labels], lengths)}


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenSet:
    """A plain set as arrays in mapped files. Only the rows' lengths and recently read pages are in memory."""

    def __init__(self, folder: Path) -> None:
        import numpy
        import pyarrow as pa

        self._maps: list[mmap.mmap] = []
        self._batches: list[tuple[Any, Any, Any]] = []
        """For each batch: offsets of its rows, ids, labels."""
        for part in json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
            with (folder / part["filename"]).open("rb") as file:
                self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            for batch in pa.ipc.open_stream(pa.py_buffer(self._maps[-1])):
                ids, labels = batch.column("input_ids"), batch.column("labels")
                values = (ids.values.to_numpy(), labels.values.to_numpy())
                self._batches.append((ids.offsets.to_numpy(), *values))
        sizes = [len(offsets) - 1 for offsets, _, _ in self._batches]
        self._starts = numpy.cumsum([0, *sizes])
        counted = [numpy.diff(offsets) for offsets, _, _ in self._batches]
        self.lengths = numpy.concatenate(counted) if counted else numpy.zeros(0, dtype=numpy.int32)
        """Tokens of each row, int32."""
        self._touched = 0

    def batches(self) -> Iterator[tuple[Any, Any, Any]]:
        """All rows in order, batch by batch, as (lengths, ids, labels)."""
        import numpy

        for offsets, ids, labels in self._batches:
            begin, end = offsets[0], offsets[-1]
            yield numpy.diff(offsets), ids[begin:end], labels[begin:end]
            self._touch(2 * (end - begin) * 4)

    def take(self, rows: Any) -> tuple[Any, Any]:
        """(ids, labels) of the rows with these numbers, end to end."""
        import numpy

        where = numpy.searchsorted(self._starts, rows, side="right") - 1
        ids, labels = [], []
        for number, at in zip(where.tolist(), (rows - self._starts[where]).tolist(), strict=True):
            offsets, all_ids, all_labels = self._batches[number]
            begin, end = offsets[at], offsets[at + 1]
            ids.append(all_ids[begin:end])
            labels.append(all_labels[begin:end])
        taken = numpy.concatenate(ids), numpy.concatenate(labels)
        self._touch(len(rows) * 2 * mmap.PAGESIZE + taken[0].nbytes * 2)
        return taken

    def _touch(self, size: int) -> None:
        self._touched += int(size)
        if self._touched > _TOUCHED:
            self._touched = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)  # pages are read again on demand


# ── joining ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_packed(
    plain: Path,
    folder: Path,
    capacity: int,
    progress: Progress = lambda *_: None,
    tell_order: Callable[[Any], object] = lambda _: None,
) -> int:
    """Pack the rows of the plain set into sequences of at most `capacity` tokens. Returns the number of sequences.

    `progress` gets (rows done, rows in all), `tell_order` the rows of all parts, in the order of the parts.
    """
    import numpy

    rows = TokenSet(plain)
    order, sizes = pack(rows.lengths, capacity)
    tell_order(order)
    behind = numpy.cumsum(sizes)
    with _open_set(folder, JOINED) as out:
        for first in range(0, len(sizes), _ROWS // 4):
            counts = sizes[first : first + _ROWS // 4]
            taken = order[behind[first] - counts[0] : behind[first] - counts[0] + counts.sum()]
            lengths = rows.lengths[taken]
            tokens = numpy.add.reduceat(lengths, numpy.cumsum(counts) - counts)
            out(_join_columns(*rows.take(taken), lengths, tokens, counts))
            progress(int(behind[first + len(counts) - 1]), len(order))
    return len(sizes)


def write_blocks(plain: Path, folder: Path, capacity: int, progress: Progress = lambda *_: None) -> Counts:
    """Write the rows of the plain set end to end in blocks of `capacity` tokens; the last one may be shorter. Returns
    their counts.

    A row that crosses the end of a block continues in the next one as a separate part, so nothing predicts that part's
    first token: its label is masked, like the first of each row. `progress` gets (rows done, rows in all).
    """
    import numpy

    counts = Counts()
    nothing = numpy.zeros(0, dtype=numpy.int32)
    lengths, ids, labels = nothing, nothing, nothing

    def blocks(lengths: Any, ids: Any, labels: Any, tokens: Any) -> Columns:
        """`lengths` are those of the parts, none of which crosses a block's end, and `tokens` those of the blocks."""
        ends = numpy.cumsum(lengths)
        labels = labels.copy()
        labels[ends - lengths] = MASKED
        counts.rows += len(tokens)
        counts.tokens += len(ids)
        counts.trained_tokens += int((labels != MASKED).sum())
        counts.lengths.update(tokens.tolist())
        parts = numpy.searchsorted(ends, numpy.cumsum(tokens)) + 1
        return _join_columns(ids, labels, lengths, tokens, numpy.diff(parts, prepend=0))

    rows, done = TokenSet(plain), 0
    with _open_set(folder, JOINED) as out:
        for batch in rows.batches():
            done += len(batch[0])
            progress(done, len(rows.lengths))
            lengths, ids, labels = map(numpy.concatenate, zip((lengths, ids, labels), batch, strict=True))
            whole = len(ids) // capacity
            border = whole * capacity
            cuts = numpy.union1d(numpy.cumsum(lengths), numpy.arange(1, whole + 1) * capacity)
            parts, before = numpy.diff(cuts, prepend=0), numpy.searchsorted(cuts, border, side="right")
            if whole:
                out(blocks(parts[:before], ids[:border], labels[:border], numpy.full(whole, capacity)))
            lengths, ids, labels = parts[before:], ids[border:], labels[border:]
        out(blocks(lengths, ids, labels, numpy.array([len(ids)] if len(ids) else [], dtype=numpy.int64)))
    return counts


def _join_columns(ids: Any, labels: Any, lengths: Any, tokens: Any, parts: Any) -> Columns:
    """The columns of joined sequences: `lengths` of all parts, and `tokens` and the number of `parts` of each
    sequence."""
    import numpy

    starts = numpy.cumsum(lengths) - lengths
    places = numpy.arange(len(ids), dtype=numpy.int32) - numpy.repeat(starts, lengths).astype(numpy.int32)
    return {
        "input_ids": (ids, tokens),
        "labels": (labels, tokens),
        "position_ids": (places, tokens),
        "seq_lengths": (lengths, parts),
    }
