"""The folder of an evaluation: its identity and every finished row, so that an interrupted evaluation can continue.

    evaluation.json     what was evaluated and how (`identity`), which files are `complete`, and at the end the metrics
    losses.jsonl        {"row", "units", "loss", "right"} of each row; of a reward model {"row", "chosen", "rejected"}
    replies.jsonl       {"row", "asked", "reply", "reference", "tokens", "stopped", "seconds", "scores", "passed"};
                        "thinking" where the model thought before its reply, and "marks" of thinking that no other
                        model has
    judge.jsonl         the judge's prompts and answers

Lines are in the order in which they were finished; at the end `replies.jsonl` is sorted by row and has the judge's
points.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.protocol.home import make_private, write_all, write_private
from engine.tasks.thoughts import MARKS, Marks

FILE = "evaluation.json"
LOSSES, REPLIES, JUDGE = "losses.jsonl", "replies.jsonl", "judge.jsonl"


def make_entry(
    row: int, asked: Any, reference: str | None, reply: str, thinking: str, marks: Marks, **measured: Any
) -> dict[str, Any]:
    """A line of `replies.jsonl`: a reply, the thinking before it, and what was measured of it. `marks` are those of the
    model's thinking."""
    further = {"thinking": thinking} if thinking else {}
    if marks not in MARKS:
        further["marks"] = list(marks)  # type: ignore[assignment]
    return {"row": row, "asked": asked, "reference": reference, "reply": reply, **further, **measured}


class ResultStore:
    """Open in one process at a time, as a context manager."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, again: bool = False) -> None:
        """Continue the evaluation in `folder`, or begin it; with `again` an earlier one is removed.

        Raises ValueError where another process is working, and where the folder holds another evaluation.
        """
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        make_private(folder)
        self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._files: dict[str, int] = {}
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(f"another process is evaluating into {folder}")
        try:
            self._begin(again)
        except BaseException:
            os.close(self._lock)
            raise

    def _begin(self, again: bool) -> None:
        before = read_result(self.folder)
        kept = before.get("identity", {})
        if before and kept != self.identity and not again:
            names = sorted(
                name for name in kept.keys() | self.identity.keys() if kept.get(name) != self.identity.get(name)
            )
            raise ValueError(
                f"{self.folder} holds an evaluation with other {', '.join(names)}: name another folder, or add --again"
            )
        if again or not before:
            for path in self.folder.iterdir():
                if path.is_file() and path.name not in (FILE, ".lock"):
                    path.unlink()
            before = {}
        self.began: float = before.get("began") or time.time()
        self._complete: list[str] = before.get("complete", [])
        self.notes: list[str] = before.get("notes", [])
        """Remarks on the files that are complete."""
        self._write({**before, "state": "going", "notes": self.notes})

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), self._lock):
            os.close(file)

    def rows(self, name: str) -> dict[int, dict[str, Any]]:
        """The entries of a file by row, the latest of each. An incomplete last line is cut off."""
        path = self.folder / name
        entries = {entry["row"]: entry for entry in read_lines(path)}
        if path.exists():
            os.truncate(path, _complete_length(path))
        return entries

    def add(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        """Append entries to a file; they are written when this returns."""
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode("utf-8", "replace")
        write_all(self._files[name], content)

    def is_complete(self, name: str) -> bool:
        """Whether a file has all rows that can be measured."""
        return name in self._complete

    def mark_complete(self, name: str, notes: Iterable[str]) -> None:
        """Note that a file has all rows that can be measured."""
        self._complete.append(name)
        self.notes = list(notes)
        self._write({"state": "going", "notes": self.notes})

    def finish(self, replies: Iterable[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
        """Write the replies in order, and the result."""
        content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in replies)
        if content:
            write_private(self.folder / REPLIES, content.encode("utf-8", "replace"))
        self._write({"state": "done", **result})

    def _write(self, content: Mapping[str, Any]) -> None:
        document = {
            **content,
            "identity": self.identity,
            "began": self.began,
            "written": time.time(),
            "complete": self._complete,
        }
        write_private(self.folder / FILE, json.dumps(document, ensure_ascii=False, indent=1).encode())


def read_result(folder: Path) -> dict[str, Any]:
    """The content of `evaluation.json`; empty where it is missing or cannot be read."""
    try:
        content = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The complete lines of a file; none of one that does not exist."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _complete_length(path: Path) -> int:
    """Bytes up to the last newline."""
    return path.read_bytes().rfind(b"\n") + 1
