"""An index of where the rows of files lie, so that any row can be read on demand."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.options.data import SourceOptions
from engine.prep import column_mapping, read_rows, readers
from engine.prep.column_mapping import Converter
from engine.prep.files.copies import copy_rows, read_origins, read_rejects
from engine.prep.files.record import Record
from engine.prep.formats.canonical import Canonical
from engine.prep.rows import Row
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

_PROBLEMS = 10_000
"""Bad rows that are kept for display; all are counted."""
_COLUMNS = 50
"""Columns listed by name."""


@dataclass
class IndexedFile:
    """A file of a source and the places of its good rows, in three parallel arrays: 24 bytes per row.

    A row that expands into several has an entry for each. Offsets and ends refer to `stored`, which is the file itself
    if it is a .jsonl, else a copy of its rows as JSONL; lines always refer to the file.
    """

    options: SourceOptions
    path: Path
    stored: Path
    format: str
    convert: Converter
    lines: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))
    rejected: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    """Columns that the format does not use -> rows that have them."""

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, _index: int) -> str:
        """The row's source and file, in lower case."""
        return f"{self.options.source} {self.path}".lower()

    def raw(self, index: int) -> bytes:
        with self.stored.open("rb") as file:
            file.seek(self.offsets[index])
            return file.read(self.ends[index] - self.offsets[index]).strip().removeprefix(b"\xef\xbb\xbf")

    def raws(self) -> Iterator[bytes]:
        """All rows as bytes; opens the file once."""
        with self.stored.open("rb") as file:
            for offset, end in zip(self.offsets, self.ends, strict=True):
                file.seek(offset)
                yield file.read(end - offset)

    def row(self, index: int, raw: bytes | None = None) -> Row:
        """The row in canonical form. Raises ValueError if the file has changed since it was indexed."""
        value, reason = readers.decode(self.raw(index) if raw is None else raw.strip().removeprefix(b"\xef\xbb\xbf"))
        try:
            if value is None:
                raise ValueError(reason)
            contents = self.convert(value)
            first = index
            while first and self.offsets[first - 1] == self.offsets[index]:
                first -= 1
            if index - first >= len(contents):
                raise ValueError(f"it expands into {len(contents)} rows now")
        except ValueError as error:
            raise ValueError(f"{self.path.name}:{self.lines[index]} has changed since it was opened: {error}")
        offset = self.offsets[index] if self.stored == self.path else 0
        return Row(str(self.path), self.lines[index], offset, contents[index - first])


@dataclass
class BadRow:
    """The place of a bad row in its file, and in the JSONL file from which it can be read again."""

    path: Path
    stored: Path
    line: int
    offset: int
    end: int | None
    """None if the row ends with its line."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"file": str(self.path), "line": self.line, "reason": self.reason}

    def raw(self) -> str:
        """At most the row's first 64 KiB; empty if the file is not JSONL."""
        if self.stored != self.path:
            return ""
        with self.stored.open("rb") as file:
            file.seek(self.offset)
            raw = file.readline(2**16) if self.end is None else file.read(min(self.end - self.offset, 2**16))
        return raw.decode("utf-8", "replace").rstrip("\n")


class Indexer:
    """Indexes files in one pass; collects the bad rows and the names of columns."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.problems: list[BadRow] = []
        self.columns: list[str] = []

    def forget(self, paths: list[Path]) -> None:
        """Drop the bad rows of these files, which are about to be indexed again."""
        self.problems[:] = [problem for problem in self.problems if problem.path not in paths]

    def index(
        self, source: SourceOptions, path: Path, limit: int | None, progress: Callable[[int], object]
    ) -> tuple[IndexedFile, int]:
        """The index of a file, up to `limit` good rows, and the number of its good rows before expansion. Raises
        ProblemError."""
        good = 0
        try:
            stored, records = self._records(path, source.encoding, progress)
            row_format = _find_format(source, path, stored)
            convert = column_mapping.make_converter(source, row_format) if row_format != "auto" else _no_rows
            indexed = IndexedFile(source, path, stored, row_format, convert)
            for record in records:
                contents = self._contents(indexed, record)
                for _ in contents:
                    indexed.lines.append(record.line)
                    indexed.offsets.append(record.offset)
                    indexed.ends.append(record.end)
                good += bool(contents)
                if good == limit:
                    break
        except (ValueError, OSError) as error:
            raise ProblemError(
                Problem(code="data.source.unusable", title=f"{source.source} cannot be read", cause=str(error))
            )
        return indexed, good

    def _records(
        self, path: Path, encoding: str | None, progress: Callable[[int], object]
    ) -> tuple[Path, Iterator[Record]]:
        """The JSONL file with the file's rows, and its records: their lines refer to the file, their offsets to the
        JSONL file."""
        if readers.is_lines(path, encoding):
            return path, readers.read(path, progress)
        copied = copy_rows(path, self._home, progress, encoding)
        placed = (
            record._replace(line=line)
            for record, line in zip(readers.read(copied.rows), read_origins(copied), strict=True)
        )
        return copied.rows, itertools.chain(read_rejects(copied, path), placed)

    def _contents(self, indexed: IndexedFile, record: Record) -> list[Canonical]:
        """The canonical rows of a record; none if it is bad, and then it is counted."""
        reason = record.reason
        if record.value is not None:
            self.columns += [column for column in record.value if column not in self.columns][
                : _COLUMNS - len(self.columns)
            ]
            try:
                found = indexed.convert(record.value)
                unused = column_mapping.unused_columns(indexed.options, record.value, found)
                indexed.unused.update(
                    name for name in unused if name in indexed.unused or len(indexed.unused) < _COLUMNS
                )
                return found
            except ValueError as error:
                reason = str(error)
        indexed.rejected += 1
        if len(self.problems) < _PROBLEMS:
            place = (record.line, record.offset, record.end)
            self.problems.append(BadRow(indexed.path, indexed.stored, *place, reason))
        return []


def _find_format(source: SourceOptions, path: Path, stored: Path) -> str:
    if not stored.stat().st_size:
        return source.format
    # A copy is written in UTF-8.
    return read_rows.find_format(source if stored == path else source.model_copy(update={"encoding": None}), stored)


def _no_rows(row: dict[str, Any]) -> list[Canonical]:
    raise ValueError("the file had no rows when it was opened")
