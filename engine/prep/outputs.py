"""Which files the verbs may replace: those that they have written themselves, and others only with `--force`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.protocol.home import Home, write_private

REPORT = "report.json"
"""Written last into a folder of results; `files` in it names the others."""


def check_files(home: Home, paths: Iterable[Path], force: bool) -> None:
    """Raises ValueError for a file that exists and that no verb of this home has written."""
    for path in paths:
        if path.exists() and not force and not _was_written(home, path):
            raise _foreign(path)


@contextmanager
def writing(home: Home, *paths: Path) -> Iterator[None]:
    """Remembers that the block writes these files, also if it is killed."""
    folder = home.cache / "outputs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in paths:
        write_private(_record(home, path), json.dumps({"path": str(path), "state": None}).encode())
    yield
    for path in paths:
        write_private(_record(home, path), json.dumps({"path": str(path), "state": _state(path)}).encode())


def check_folder(folder: Path, names: Iterable[str], force: bool) -> None:
    """Raises ValueError for a file of these names in `folder` that no verb has written, as far as its report says."""
    if force or any(folder.glob(f".{REPORT}.*")):  # the draft of a process that was killed while it wrote
        return
    ours = written_files(folder)
    for name in (*names, REPORT):
        if (folder / name).exists() and name not in ours:
            raise _foreign(folder / name)


def written_files(folder: Path) -> set[str]:
    """The files in a folder of results that verbs have written; empty for another folder."""
    try:
        report: Any = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(report, dict) or "directory" not in report:
        return set()
    older = ("rows.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl", "rejects.jsonl")  # reports without a list
    return {*report.get("files", older), REPORT}


def _foreign(path: Path) -> ValueError:
    return ValueError(
        f"{path} exists and was not written by this command: name another place in --out, or replace it with --force"
    )


def _was_written(home: Home, path: Path) -> bool:
    try:
        record = json.loads(_record(home, path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return record["state"] in (None, _state(path))


def _record(home: Home, path: Path) -> Path:
    return home.cache / "outputs" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"


def _state(path: Path) -> list[int] | None:
    if not path.exists():
        return None
    return [path.stat().st_size, path.stat().st_mtime_ns]
