"""Reads sources as a stream of canonical rows: detects formats, records bad rows, applies limits and weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from engine.options.data import SourceOptions
from engine.prep import column_mapping, detect_format, readers
from engine.prep.column_mapping import Converter
from engine.prep.rows import Rejects, Row
from engine.prep.sources import HUB, fetch, list_files, parse_hub_source
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

_LOOKED_AT = 100
"""Rows that are inspected to detect a format and to check column names."""


def locate(source: SourceOptions, directory: Path, home: Home | None = None) -> list[Path]:
    """The files that a source names, in the order in which they are read.

    A hub source is fetched into the home. Raises ValueError for a hub source without a home, and for a source that is
    missing or cannot be read.
    """
    if not source.source.startswith(HUB):
        return list_files(source.source, directory)
    hub = parse_hub_source(source.source)
    if home is None:
        raise ValueError(f"{source.source} is on the hub: it is fetched when the data is prepared")
    return [fetch(hub, home, lambda *_: None)]


def find_format(source: SourceOptions, path: Path) -> str:
    """The source's `format`, or for `auto` the format of the file's first good rows after its columns are renamed.

    For a file without good rows any format will do: it is `text`. Raises ValueError for rows without a known format,
    and for a column in `columns` or `prompt` that no row has.
    """
    if source.format != "auto" and not (source.columns or source.prompt):
        return source.format
    values = (record.value for record in readers.read(path, encoding=source.encoding) if record.value)
    looked_at = list(itertools.islice(values, _LOOKED_AT))
    if not looked_at:
        return "text" if source.format == "auto" else source.format
    try:
        column_mapping.check_columns(source, {str(column) for row in looked_at for column in row})
        if source.format != "auto":
            return source.format
        renamed = [column_mapping.rename_columns(row, source.columns)[0] for row in looked_at]
        return detect_format.detect(renamed, source.columns)
    except ValueError as error:
        raise ValueError(f"{source.source}: {error}")


def make_converter(source: SourceOptions, row_format: str) -> Converter:
    """A function that converts a source's rows, which have this format. Raises ValueError if the format does not allow
    the source's options."""
    try:
        return column_mapping.make_converter(source, row_format)
    except ValueError as error:
        raise ValueError(f"{source.source}: {error}")


def read(
    sources: list[SourceOptions],
    directory: Path,
    rejects: Rejects,
    seed: int,
    progress: Callable[[int], object],
    home: Home | None = None,
) -> Iterator[Row]:
    """The good rows of all sources, in order, each repeated according to its source's weight.

    `progress` gets the bytes read so far. Raises ProblemError for a file that cannot be read at all.
    """
    done = 0
    for index, source in enumerate(sources):
        try:
            paths = locate(source, directory, home)
            yield from _read_source(source, paths, rejects, Random(f"{seed}:{index}"), done, progress)
        except (ValueError, OSError) as error:
            raise ProblemError(
                Problem(code="data.source.unusable", title=f"{source.source} cannot be read", cause=str(error))
            )
        done += sum(path.stat().st_size for path in paths)


def _read_source(
    source: SourceOptions,
    paths: list[Path],
    rejects: Rejects,
    random: Random,
    done: int,
    progress: Callable[[int], object],
) -> Iterator[Row]:
    """`max_rows` counts good source rows; the weight applies to each canonical row separately."""
    good = 0
    for path in paths:
        size = path.stat().st_size
        convert: Converter | None = None
        for record in readers.read(path, partial(_report, progress, done), source.encoding) if size else ():
            rejects.read += 1
            if record.value is None:
                rejects.add(*record[:3], record.reason)
                continue
            convert = convert or make_converter(source, find_format(source, path))
            try:
                contents = convert(record.value)
            except ValueError as error:
                rejects.add(*record[:3], str(error))
                continue
            for content in contents:
                times = int(source.weight) + (random.random() < source.weight % 1)
                yield from itertools.repeat(Row(*record[:3], content), times)
            good += 1
            if good == source.max_rows:
                return
        done += size


def _report(progress: Callable[[int], object], before: int, taken: int) -> None:
    progress(before + taken)
