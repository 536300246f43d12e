"""Copies of files as JSONL in the home's cache, for kinds of files that allow no random access to rows."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.prep import readers
from engine.prep.files.record import Record
from engine.protocol.home import Home
from engine.storage import cache

_VERSION = 2
"""Increased when the readers take the same bytes for other rows."""


class Copy(NamedTuple):
    """Paths: `rows` has the good rows, one per line; `origins` their line numbers in the file, 64 bits each; `rejects`
    the bad records."""

    rows: Path
    origins: Path
    rejects: Path


def copy_rows(path: Path, home: Home, progress: Callable[[int], object], encoding: str | None = None) -> Copy:
    """The copy of a file, made on first use and then found by its content. `progress` gets bytes, up to the file's
    size.

    Raises ValueError and OSError as `readers.read` does; then no copy is kept.
    """
    half = path.stat().st_size // 2
    settings = {"kind": readers.find_kind(path), "encoding": encoding, "readers": _VERSION}
    name = "rows-" + cache.entry_key({"rows": path}, settings, lambda done: progress(done // 2))
    made = Copy(*(home.cache / name / file for file in ("rows.jsonl", "origins", "rejects.jsonl")))
    if not cache.find_entry(home, name):
        with (
            cache.new_entry(home, name) as folder,
            (folder / "rows.jsonl").open("wb") as good,
            (folder / "origins").open("wb") as origins,
            (folder / "rejects.jsonl").open("w", encoding="utf-8") as bad,
        ):
            for record in readers.read(path, lambda done: progress(half + done // 2), encoding):
                if record.value is None:
                    bad.write(json.dumps([record.line, record.offset, record.reason], ensure_ascii=False) + "\n")
                else:
                    good.write(msgspec.json.encode(record.value) + b"\n")
                    array("Q", [record.line]).tofile(origins)
    return made


def read_origins(copied: Copy) -> Iterator[int]:
    """The line numbers of the good rows in the original file."""
    with copied.origins.open("rb") as file:
        while block := file.read(2**16):
            yield from memoryview(block).cast("Q")


def read_rejects(copied: Copy, path: Path) -> Iterator[Record]:
    """The records of `path` that could not be read."""
    with copied.rejects.open(encoding="utf-8") as file:
        for content in file:
            line, offset, reason = json.loads(content)
            yield Record(str(path), line, offset, offset, None, reason)
