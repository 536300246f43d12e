"""Sources to canonical rows: shape found, bad rows named and counted, limits and weights applied. A stream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from engine.prep import readers, shapes
from engine.prep.formats.canonical import Canonical
from engine.prep.options import SourceOptions
from engine.prep.sources import find_source
from engine.protocol.messages import Problem, ProblemError

_LOOKED_AT = 20
"""Rows by which a shape is detected."""


class Row(NamedTuple):
    """A good row and its place."""

    file: str
    line: int
    offset: int
    content: Canonical


@dataclass
class Rejects:
    """Bad rows: counted, and written down as JSON lines of `file line offset reason`."""

    write: Callable[[str], object]
    read: int = 0
    """Records seen, good and bad."""
    count: int = 0
    first: list[str] = field(default_factory=list)
    """The first few, for a message: `file:line: reason`."""

    def add(self, file: str, line: int, offset: int, reason: str) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(f"{Path(file).name}:{line}: {reason}")
        self.write(
            json.dumps({"file": file, "line": line, "offset": offset, "reason": reason}, ensure_ascii=False) + "\n"
        )


def locate(source: SourceOptions, directory: Path) -> Path:
    """The file that a source names. Raises ValueError when there is none that can be read here."""
    found = find_source(source.source, directory)
    if isinstance(found, str):
        raise ValueError(
            f"{source.source}: hub data sets cannot be read yet; download it and name the .jsonl or .json file"
        )
    if found.is_dir():
        raise ValueError(f"{source.source} is a folder; name the .jsonl or .json files in it")
    readers.check_suffix(found)
    return found


def shape_of(source: SourceOptions, path: Path) -> str:
    """The source's `format`, or what its first good rows look like. Raises ValueError."""
    if source.format != "auto":
        return source.format
    looked_at = itertools.islice((record.value for record in readers.read(path) if record.value), _LOOKED_AT)
    try:
        return shapes.detect(list(looked_at))
    except ValueError as error:
        raise ValueError(f"{source.source}: {error}")


def read(
    sources: list[SourceOptions], directory: Path, rejects: Rejects, seed: int, progress: Callable[[int], object]
) -> Iterator[Row]:
    """The good rows of all sources, in order, each as often as its weight says.

    `progress` is told the bytes behind each record. Raises ProblemError for a file that cannot be read at all.
    """
    done = 0
    for index, source in enumerate(sources):
        try:
            path = locate(source, directory)
            yield from _read_one(source, path, rejects, Random(f"{seed}:{index}"), done, progress)
        except (ValueError, OSError) as error:
            raise ProblemError(Problem(title=f"{source.source} cannot be read", cause=str(error)))
        done += path.stat().st_size


def _read_one(
    source: SourceOptions, path: Path, rejects: Rejects, random: Random, done: int, progress: Callable[[int], object]
) -> Iterator[Row]:
    if path.stat().st_size == 0:
        return
    convert: Callable[[dict[str, Any]], Canonical] | None = None
    good = 0
    for record in readers.read(path):
        progress(done + record.end)
        rejects.read += 1
        if record.value is None:
            rejects.add(*record[:3], record.reason)
            continue
        convert = convert or shapes.load(shape_of(source, path)).convert
        try:
            row = Row(*record[:3], convert(record.value))
        except ValueError as error:
            rejects.add(*record[:3], str(error))
            continue
        times = int(source.weight) + (random.random() < source.weight % 1)
        yield from itertools.repeat(row, times)
        good += 1
        if good == source.max_rows:
            return
