"""Adds a conversation to a file of rows: in the format of the file, or of a run's data if there are no rows in it
yet."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.config import yaml_text
from engine.options.data import DataOptions, SourceOptions
from engine.prep import detect_format, read_rows, readers
from engine.prep.formats.canonical import make_conversation
from engine.protocol.home import Home

LOOKED_AT = 20
"""Rows of the file that its format is told from."""
ANY = "messages"
"""The format that holds every conversation."""


def keep_row(path: Path, messages: list[dict[str, Any]], home: Home, run: str = "") -> dict[str, Any]:
    """Append a row to the JSONL file at `path`, which is made if it is not there. `run` names the run whose data give
    the format of a new file.

    Returns the `path`, the row's `format` and whether it was `added`; a row that is in the file already is not added
    again. Raises ValueError for a path that is no JSONL file and for a conversation that its format cannot hold,
    OSError for a file that cannot be written.
    """
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"{path} is no JSONL file: give a name that ends in .jsonl")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    canonical = make_conversation(messages)
    if found := _first_rows(path):
        name, row = _as_in_file(canonical, found, home, run)
    else:
        name, row = _as_in_run(canonical, home, run)
    line = json.dumps(row, ensure_ascii=False).encode()
    return {"path": str(path), "format": name, "added": _append(path, line)}


def _first_rows(path: Path) -> list[dict[str, Any]]:
    """Empty for a file that is not there or is empty. Raises ValueError for one to which a line of JSON in UTF-8 cannot
    be added."""
    if not path.exists() or not path.stat().st_size:
        return []
    if not readers.is_lines(path):
        raise ValueError(f"{path} is no JSONL file in UTF-8, with a row in each line: give another name")
    values = (record.value for record in readers.read(path) if record.value)
    found = list(itertools.islice(values, LOOKED_AT))
    if not found:
        raise ValueError(f"{path} has no row of JSON: give another name")
    return found


def _as_in_file(
    canonical: dict[str, Any], found: list[dict[str, Any]], home: Home, run: str
) -> tuple[str, dict[str, Any]]:
    """The row in the format of a file's rows; with the column names of the run's first source where these rows have
    them."""
    for source, name in _read_format(home, run):
        if source.columns and all({*source.columns.values()} <= row.keys() for row in found):
            row = detect_format.load(name).revert(canonical)
            return name, {source.columns.get(column, column): value for column, value in row.items()}
    name = detect_format.detect(found)
    return name, detect_format.load(name).revert(canonical)


def _as_in_run(canonical: dict[str, Any], home: Home, run: str) -> tuple[str, dict[str, Any]]:
    """The row in the format of the run's first source and with its column names, if that holds the conversation; else
    as messages."""
    for source, name in _read_format(home, run):
        try:
            row = detect_format.load(name).revert(canonical)
        except ValueError:
            break
        return name, {source.columns.get(column, column): value for column, value in row.items()}
    return ANY, detect_format.load(ANY).revert(canonical)


def _read_format(home: Home, run: str) -> list[tuple[SourceOptions, str]]:
    """The first source of the run's profile and its format; empty where these cannot be told any more."""
    directory = home.run(run) if run else None
    if directory is None or not directory.profile.is_file():
        return []
    try:
        job = json.loads((directory.path / "job.json").read_text(encoding="utf-8"))
        text = directory.profile.read_text(encoding="utf-8")
        yaml_text.check(text)
        # The section alone: whether the run's base is still there does not matter here.
        source = DataOptions.model_validate(YAML(typ="safe", pure=True).load(text)["data"]).train[0]
        if source.prompt:
            return []  # a question that was made from columns cannot be divided into them again
        paths = read_rows.locate(source, Path(job["directory"]), home)
        return [(source, read_rows.find_format(source, paths[0]))]
    except (YAMLError, ValueError, OSError, LookupError, TypeError, RecursionError):
        return []


def _append(path: Path, line: bytes) -> bool:
    """Append a line; False if the file has it already. What a full disk leaves of it is taken back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another app may be adding one
        last = b"\n"
        with path.open("rb") as lines:
            for each in lines:
                last = each
                if each.strip() == line:
                    return False
        size = file.seek(0, os.SEEK_END)
        whole = (b"" if last.endswith(b"\n") else b"\n") + line + b"\n"
        try:
            if file.write(whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    return True
