"""`cockpit data inspect FILE`: the format of the rows, their number, their columns, and the first row as training sees
it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from engine.options.data import SourceOptions
from engine.prep import column_mapping, read_rows, readers, sources
from engine.prep.column_mapping import Converter
from engine.prep.formats.canonical import Canonical
from engine.prep.readers import Record
from engine.prep.sources import Progress
from engine.prep.stages.standalone import describe_left_out, parse_source
from engine.prep.stages.validate import reason_class
from engine.protocol.home import Home

_COLUMNS = 200
"""Columns listed by name: rows with free keys have any number of columns."""


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{shape, rows, columns, sample[, unused_columns][, rejected, reasons][, left_out]}`. `rows` counts every record,
    readable or not; `sample` is the first good row, canonical; the rest as in `validate`, where there is any.

    Raises ValueError if nothing has that name, it has no rows, or no format fits.
    """
    source = parse_source(arguments)
    if sources.is_tokenised(Path(arguments.file)):
        raise ValueError(f"{arguments.file} holds tokens already: there are no rows to look at")
    paths = read_rows.locate(source, Path.cwd(), home)
    total, done = sum(path.stat().st_size for path in paths), 0
    seen = _Seen(source)
    for path in paths:
        report = lambda taken, before=done: progress("reading", before + taken, total)  # noqa: E731
        convert: Converter | None = None
        for record in readers.read(path, report, source.encoding):
            if record.value is not None and convert is None:
                row_format = read_rows.find_format(source, path)
                seen.format = seen.format or row_format
                convert = column_mapping.make_converter(source, row_format)
            seen.add(record, convert)
        done += path.stat().st_size
    if not seen.format:
        unreadable = f"{seen.rows} rows, none of which can be read: {seen.first}"
        raise ValueError(f"{arguments.file} holds {unreadable if seen.rows else 'no rows'}")
    return seen.report() | describe_left_out(source)


class _Seen:
    """What is found in rows."""

    def __init__(self, source: SourceOptions) -> None:
        self._source = source
        self.format = ""
        self.rows = 0
        self.first = ""
        """The reason why the first unreadable row cannot be read."""
        self.reasons: Counter[str] = Counter()
        self._columns: dict[str, None] = {}
        self._unused: Counter[str] = Counter()
        self._sample: Canonical | None = None

    def add(self, record: Record, convert: Converter | None) -> None:
        self.rows += 1
        if record.value is None or convert is None:
            self.first = self.first or record.reason
            self.reasons[reason_class(record.reason)] += 1
            return
        if record.value.keys() - self._columns.keys() and len(self._columns) < _COLUMNS:
            self._columns |= dict.fromkeys(record.value)
        try:
            found = convert(record.value)
        except ValueError as error:
            self.reasons[reason_class(str(error))] += 1
            return
        unused = column_mapping.unused_columns(self._source, record.value, found)
        self._unused.update(name for name in unused if name in self._unused or len(self._unused) < _COLUMNS)
        if self._sample is None and found:
            self._sample = {name: value for name, value in found[0].items() if name != "columns"}

    def report(self) -> dict[str, Any]:
        report = {
            "shape": self.format,
            "rows": self.rows,
            "columns": list(self._columns)[:_COLUMNS],
            "sample": self._sample,
        }
        if self._unused:
            report["unused_columns"] = dict(self._unused.most_common())
        if self.reasons:
            report |= {"rejected": sum(self.reasons.values()), "reasons": dict(sorted(self.reasons.items()))}
        return report
