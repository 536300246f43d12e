"""What a user decided about expanded rows, and which rows are therefore kept.

    OUT/made.jsonl        every row that was made
    OUT/decisions.jsonl   {"row": digest, "decision": "accepted" | "dropped" | "undecided"}, appended; the last word on a row holds
    OUT/rows.jsonl        the rows that are kept: those made, without the dropped ones. What nobody decided about is kept

A row is known by the hash of its line, so decisions outlive a new run, in which rows may have other places. Who writes decisions or
rows holds a lock on `decisions.jsonl`.
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

from engine.protocol.home import sync

MADE, DECISIONS, ROWS = "made.jsonl", "decisions.jsonl", "rows.jsonl"
ACCEPTED, DROPPED, UNDECIDED = WORDS = ("accepted", "dropped", "undecided")


class RowCounts(NamedTuple):
    """Numbers of rows."""

    kept: int
    dropped: int


def read_kept(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of an expansion that the user has not dropped, in the order in which they were made. Raises FileNotFoundError before there are any."""
    dropped = _dropped(folder)
    with (folder / MADE).open("rb") as made:
        for line in made:
            if not dropped or digest(line) not in dropped:
                row: dict[str, Any] = json.loads(line)
                yield row


def is_expansion(folder: Path) -> bool:
    """Whether `expand` has published its rows in this folder: of all files there, `rows.jsonl` holds the ones to train on."""
    return all((folder / name).is_file() for name in (MADE, DECISIONS, ROWS))


def digest(line: bytes) -> str:
    """What a row of `made.jsonl` is known by."""
    return blake2b(line.strip(), digest_size=16).hexdigest()


def read_decisions(folder: Path) -> dict[str, str]:
    """Digest -> the last word on the row, for rows of which there was any. Raises ValueError for a file that is none of ours."""
    path = folder / DECISIONS
    told: dict[str, str] = {}
    if not path.is_file():
        return told
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # torn by a kill; the next writer cuts it off
            break
        try:
            entry = json.loads(line)
            row, decision = entry["row"], entry["decision"]
        except (ValueError, KeyError, TypeError):
            decision = None
        if decision not in WORDS:
            raise ValueError(f"{path}:{number} is no decision about a row: mend or remove that line")
        told[row] = decision
    return told


def decide(folder: Path, row: str, decision: str) -> RowCounts:
    """Write down a decision about the row of this digest; `rows.jsonl` is in keeping with it when this returns. Raises ValueError, OSError."""
    assert decision in WORDS, decision
    with lock(folder) as file:
        content = os.pread(file, os.fstat(file).st_size, 0)
        good = content.rfind(b"\n") + 1
        os.ftruncate(file, good)
        os.pwrite(file, json.dumps({"row": row, "decision": decision}).encode() + b"\n", good)
        os.fsync(file)
        return publish(folder)


@contextmanager
def lock(folder: Path) -> Iterator[int]:
    """Hold the folder's decisions and rows against other writers; yields the open file of decisions."""
    descriptor = os.open(folder / DECISIONS, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def publish(folder: Path) -> RowCounts:
    """Write `rows.jsonl` anew from what was made and decided. Call it while `publishing`."""
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
