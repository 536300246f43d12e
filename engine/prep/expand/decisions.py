"""The user's decisions about expanded rows, and the rows that are kept because of them.

    OUT/made.jsonl        every row that was made
    OUT/decisions.jsonl   {"row": digest, "decision": "accepted" | "dropped" | "undecided"}, appended; the last one of a
    row counts OUT/rows.jsonl        the kept rows: all that were made except the dropped ones; undecided rows are kept

A row is identified by the hash of its line, so decisions remain valid after a new run in which rows have other places.
Writers of decisions or rows hold a lock on `decisions.jsonl`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from engine.protocol.home import sync, write_all

MADE, DECISIONS, ROWS = "made.jsonl", "decisions.jsonl", "rows.jsonl"
ACCEPTED, DROPPED, UNDECIDED = WORDS = ("accepted", "dropped", "undecided")


class RowCounts(NamedTuple):
    """Numbers of kept and of dropped rows."""

    kept: int
    dropped: int


def read_kept(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of an expansion that the user has not dropped, in the order in which they were made. Raises
    FileNotFoundError before the first expansion."""
    dropped = _dropped(folder)
    with (folder / MADE).open("rb") as made:
        for line in made:
            if not dropped or digest(line) not in dropped:
                row: dict[str, Any] = json.loads(line)
                yield row


def is_expansion(folder: Path) -> bool:
    """Whether `expand` has published its rows in this folder; then `rows.jsonl` holds the rows to train on."""
    return all((folder / name).is_file() for name in (MADE, DECISIONS, ROWS))


def digest(line: bytes) -> str:
    """The hash that identifies a row of `made.jsonl`."""
    return blake2b(line.strip(), digest_size=16).hexdigest()


def read_decisions(folder: Path) -> dict[str, str]:
    """Digest -> the last decision about the row. Raises ValueError for a file with other content."""
    path = folder / DECISIONS
    found: dict[str, str] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # incomplete because of a kill; the next writer removes it
            break
        try:
            entry = json.loads(line)
            row, decision = entry["row"], entry["decision"]
        except (ValueError, KeyError, TypeError):
            decision = None
        if decision not in WORDS:
            raise ValueError(f"{path}:{number} is not a decision about a row: correct or remove that line")
        found[row] = decision
    return found


def decide(folder: Path, row: str, decision: str) -> RowCounts:
    """Record a decision about the row with this digest and update `rows.jsonl`. Raises ValueError, OSError."""
    assert decision in WORDS, decision
    with lock(folder) as file:
        content = os.pread(file, os.fstat(file).st_size, 0)
        good = content.rfind(b"\n") + 1
        os.ftruncate(file, good)
        os.lseek(file, good, os.SEEK_SET)
        write_all(file, json.dumps({"row": row, "decision": decision}).encode() + b"\n")
        os.fsync(file)
        return publish(folder)


@contextmanager
def lock(folder: Path) -> Iterator[int]:
    """Lock the folder's decisions and rows against other writers; yields the descriptor of the file of decisions."""
    descriptor = os.open(folder / DECISIONS, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def publish(folder: Path) -> RowCounts:
    """Write `rows.jsonl` from the rows that were made and the decisions. The caller must hold the `lock`."""
    draft = folder / f".{ROWS}.draft"
    dropped = _dropped(folder)
    count = gone = 0
    with (folder / MADE).open("rb") as made, draft.open("wb") as rows:
        for line in made:
            if dropped and digest(line) in dropped:
                gone += 1
            else:
                rows.write(line)
                count += 1
    sync(draft)
    draft.replace(folder / ROWS)
    return RowCounts(count, gone)


def _dropped(folder: Path) -> set[str]:
    return {row for row, decision in read_decisions(folder).items() if decision == DROPPED}
