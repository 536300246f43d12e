"""Detects the format of rows, and converts rows by the name of their format."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from types import ModuleType
from typing import Any

from engine.prep.formats import FORMATS, media
from engine.prep.formats.canonical import Canonical, abbreviate


def load(name: str) -> ModuleType:
    """The module of a format, with its `matches`, `convert` and `revert`."""
    return importlib.import_module(FORMATS[name])


def find_kind(name: str) -> str:
    """What the rows of a format are: `conversations`, `text`, `pairs` or `judged`."""
    return str(getattr(load(name), "KIND", "conversations"))


def convert(name: str, row: dict[str, Any]) -> list[Canonical]:
    """The canonical rows of a row: one, or several for a format that expands. Raises ValueError for a bad row, and for
    one with images, sound or video."""
    found = as_list(load(name).convert(row))
    if row.keys() & media.COLUMNS:
        media.check_row(row, found)
    return found


def as_list(converted: Canonical | list[Canonical]) -> list[Canonical]:
    return converted if isinstance(converted, list) else [converted]


def detect(rows: Sequence[dict[str, Any]], mapped: Collection[str] = ()) -> str:
    """The format of most of these rows, among those that give a meaning to all columns in `mapped`. Raises ValueError,
    naming the columns, if no row has a known format."""
    formats = [name for name in FORMATS if set(mapped) <= known_columns(name)] or list(FORMATS)
    counts = {name: sum(load(name).matches(row) for row in rows) for name in formats}
    best = max(counts, key=lambda name: counts[name])
    if counts[best]:
        return best
    columns = sorted({str(column) for row in rows for column in row})
    for name in ("messages", "conversations"):
        if name in columns and not mapped:
            first = next(row[name] for row in rows if name in row)
            raise ValueError(f"the column {name} holds {abbreviate(first)}, not a list of turns with role and content")
    raise ValueError(
        f"no known format has the columns {join_names(columns)}; known are {', '.join(FORMATS)}: "
        "say which in format, and name the columns in columns"
    )


def known_columns(name: str) -> frozenset[str]:
    """The columns that have a meaning in a format."""
    return frozenset(load(name).COLUMNS)


def join_names(columns: Iterable[object]) -> str:
    """Column names for a message, shortened: rows with free keys have any number of columns, with names of any
    length."""
    names = [str(column) for column in itertools.islice(columns, 31)]
    short = [name if len(name) <= 60 else name[:59] + "…" for name in names[:30]]
    return ", ".join(short) + (" …" if len(names) > 30 else "") or "none"
