"""CSV and TSV: the first line names the columns, and every value is text. Quoting follows RFC 4180, so values may span
lines. A first column without a name, the index that `pandas` writes, is called `Unnamed: 0`.

The delimiter of a .csv is the one of `,` `;` tab `|` with which most of the first rows have as many fields as the
header.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.prep.files.lines import LONGEST_LINE, Line, describe_too_long, read_lines
from engine.prep.files.record import BOM, NOT_UTF8, BadFile, Record

DELIMITERS = ",;\t|"
_SNIFFED = 2**16
"""Bytes from which the delimiter is detected."""
_READ_AGAIN = 2**20
"""Bytes of the rows after an unclosed quote that are read again as rows; beyond that they are lost."""


class _TooLong(Exception):
    """A row is longer than the limit."""


def read_csv(stream: BinaryIO, path: Path) -> Iterator[Record]:
    start = stream.peek(_SNIFFED) if hasattr(stream, "peek") else b""
    return _read(stream, path, find_delimiter(start[:_SNIFFED].removeprefix(BOM).decode("utf-8", "replace")))


def read_tsv(stream: BinaryIO, path: Path) -> Iterator[Record]:
    return _read(stream, path, "\t")


def find_delimiter(start: str) -> str:
    """The delimiter of a file with this beginning; a comma if there is only one column."""

    def agreeing(delimiter: str) -> tuple[float, int]:
        """(share of rows with as many fields as the header, number of fields); (0, 0) for a single field."""
        whole = start[: start.rfind("\n") + 1] or start
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(whole), delimiter=delimiter) if row]
        except csv.Error:
            return 0, 0
        if not widths or widths[0] == 1:
            return 0, 0
        return widths.count(widths[0]) / len(widths), widths[0]

    # `max` returns the first of equals, so the comma comes first.
    return max(DELIMITERS, key=agreeing)


def _read(stream: BinaryIO, path: Path, delimiter: str) -> Iterator[Record]:
    """Raises ValueError for a header with an empty or repeated column name."""
    csv.field_size_limit(LONGEST_LINE)  # this setting is global, but nothing else in the process reads CSV
    taken = _RowLines(read_lines(stream))
    rows = csv.reader(taken, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        taken.begin()
        values: list[str] = []
        reason, broken = "", False
        try:
            values = next(rows)
        except StopIteration:
            return
        except _TooLong:
            reason = describe_too_long("a row")
            taken.skip()
        except csv.Error as error:
            reason, broken = f"not CSV: {error}", True
        first, end = taken.row[0], taken.row[-1].end
        if reason:
            if broken and len(taken.row) > 1:
                reason += f" (a quote opens here and continues to line {taken.row[-1].number})"
                end = taken.put_back(end)
        elif not values:
            continue
        elif any("\udc80" <= character <= "\udcff" for value in values for character in value):
            reason = NOT_UTF8
        if columns is None:
            columns = _check_header(values, reason, path, first.number)
            continue
        if not reason and len(values) != len(columns):
            reason = f"{len(values)} fields, but the header has {len(columns)} (the delimiter is {delimiter!r})"
        value = None if reason else dict(zip(columns, values, strict=True))
        yield Record(str(path), first.number, first.offset, end, value, reason)


def _check_header(values: list[str], reason: str, path: Path, line: int) -> list[str]:
    columns = [value.strip() for value in values]
    if len(columns) > 1 and not columns[0] and all(columns[1:]):
        columns[0] = _name_index(columns)
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if not reason and "" in columns:
        reason = f"column {columns.index('') + 1} has no name"
    elif not reason and twice is not None:
        reason = f"two columns are called {twice}"
    if reason:
        raise BadFile(f"{path.name}:{line}: the first line must name the columns: {reason}")
    return columns


def _name_index(columns: list[str]) -> str:
    """A name for the first column, which `pandas` writes without one: the one by which `pandas` reads it again."""
    names = ("Unnamed: 0", *(f"Unnamed: 0.{number}" for number in range(1, len(columns) + 1)))
    return next(name for name in names if name not in columns)


class _RowLines(Iterator[str]):
    """Passes lines to the CSV reader and remembers which of them make up the current row."""

    def __init__(self, source: Iterator[Line]) -> None:
        self._source = source
        self._again: deque[Line] = deque()
        self.row: list[Line] = []
        self._size = 0

    def begin(self) -> None:
        self.row, self._size = [], 0

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._source)
        self.row.append(line)
        self._size += line.end - line.offset
        if line.content is None or self._size > LONGEST_LINE:
            raise _TooLong
        content = line.content if line.offset else line.content.removeprefix(BOM)
        return content.decode("utf-8", "surrogateescape")

    def skip(self) -> None:
        """Skip to the end of the quoted value in which the current row ends, without keeping it."""
        if self.row[-1].content is None:
            return  # a single line too long to inspect: the next line begins a row
        inside = sum((line.content or b"").count(b'"') for line in self.row) % 2
        while inside and (line := next(self._source, None)):
            inside = (inside + (line.content or b"").count(b'"')) % 2
            self.row[1:] = [line._replace(content=None)]

    def put_back(self, end: int) -> int:
        """Read all lines of the row except its first one again. Returns where the row ends now."""
        if self._size > _READ_AGAIN:
            return end
        self._again.extendleft(reversed(self.row[1:]))
        return self.row[0].end
