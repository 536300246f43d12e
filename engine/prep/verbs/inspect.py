"""`cockpit data inspect FILE`: the format of the rows, their number, their columns, and the first row as training sees
it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.options.data import SourceOptions
from engine.prep import column_mapping, read_rows, readers, sources
from engine.prep.formats import FORMATS
from engine.prep.formats.canonical import Canonical
from engine.prep.sources import Progress
from engine.protocol.home import Home

_COLUMNS = 200
"""Columns listed by name: rows with free keys have any number of columns."""


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{shape, rows, columns, sample}`. `rows` counts every record, readable or not; `sample` is the first good row,
    canonical.

    Raises ValueError if nothing has that name, it has no rows, or no format fits.
    """
    wanted_format = getattr(arguments, "format", "auto")
    if wanted_format != "auto" and wanted_format not in FORMATS:
        raise ValueError(f"there is no format {wanted_format}; known are {', '.join(FORMATS)}")
    if sources.is_tokenised(Path(arguments.file)):
        raise ValueError(f"{arguments.file} holds tokens already: there are no rows to look at")
    source = SourceOptions(source=arguments.file, format=wanted_format)
    paths = read_rows.locate(source, Path.cwd(), home)
    total, done = sum(path.stat().st_size for path in paths), 0
    row_format, count, columns = "", 0, dict[str, None]()
    sample: Canonical | None = None
    for path in paths:
        for record in readers.read(path, lambda taken, before=done: progress("reading", before + taken, total)):  # type: ignore[misc]
            count += 1
            if record.value is None:
                continue
            if record.value.keys() - columns.keys() and len(columns) < _COLUMNS:
                columns |= dict.fromkeys(record.value)
            row_format = row_format or read_rows.find_format(source, path)
            sample = sample or _sample(source, row_format, record.value)
        done += path.stat().st_size
    if not row_format:
        raise ValueError(f"{arguments.file} holds {f'{count} rows, none of which can be read' if count else 'no rows'}")
    return {"shape": row_format, "rows": count, "columns": list(columns)[:_COLUMNS], "sample": sample}


def _sample(source: SourceOptions, row_format: str, row: dict[str, Any]) -> Canonical | None:
    """The row in canonical form, the first one if it expands; None for a bad row."""
    try:
        canonical = column_mapping.make_converter(source, row_format)(row)[0]
    except (ValueError, IndexError):
        return None
    return {name: value for name, value in canonical.items() if name != "columns"}
