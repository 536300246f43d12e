"""The files of an expansion, written as drafts and renamed when all of them are complete."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.llm_api.journal import Answer
from engine.prep.expand import decisions
from engine.prep.expand.decisions import DECISIONS, MADE, ROWS
from engine.protocol.home import sync, write_private

_DRAFTED = ("answers.jsonl", MADE, "rejects.jsonl")
NAMES = (*_DRAFTED, DECISIONS, ROWS, "report.json")


class Results:
    """A context manager; drafts that were not published are removed at its end."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._drafts = {name: out / f".{name}.draft" for name in _DRAFTED}
        self._files = {name: draft.open("w", encoding="utf-8") for name, draft in self._drafts.items()}
        self._answers = 0
        self._answer: dict[str, Any] = {}
        """The current answer; written when all its items are known."""

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        for name, draft in self._drafts.items():
            self._files[name].close()
            draft.unlink(missing_ok=True)

    def start_answer(self, number: int, answer: Answer, seeds: list[dict[str, Any]]) -> None:
        """Begin an answer; `seeds` are the rows that its prompt showed."""
        self._finish_answer()
        self._answers += 1
        self._answer = {"request": number, "reply": answer.reply, "finish": answer.finish, "seeds": seeds, "items": []}

    def add_row(self, item: int, row: dict[str, Any]) -> None:
        """Add a good row, made from item `item` (from 1) of the current answer."""
        self._answer["items"].append(item)
        self._write(MADE, row)

    def add_reject(self, item: int, reason: str, value: Any) -> None:
        """Reject item `item` (from 1; 0 means the whole answer) of the current answer."""
        place = {"file": str(self._out / "answers.jsonl"), "line": self._answers, "offset": 0, "item": item}
        self._write("rejects.jsonl", {**place, "reason": reason, "row": value})

    def publish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Rename the drafts; rows that the user has dropped are left out of `rows.jsonl`. Returns the report with
        `rows` and `dropped`."""
        self._finish_answer()
        with decisions.lock(self._out):
            for name, draft in self._drafts.items():
                self._files[name].close()
                sync(draft)
                draft.replace(self._out / name)
            kept, dropped = decisions.publish(self._out)
        report = {**report, "rows": kept, "dropped": dropped}
        write_private(self._out / "report.json", (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode())
        sync(self._out)
        return report

    def _finish_answer(self) -> None:
        if self._answer:
            self._write("answers.jsonl", self._answer)

    def _write(self, name: str, value: Any) -> None:
        # A reply may contain half a surrogate pair, which JSON can escape but UTF-8 cannot encode.
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        self._files[name].write(text + "\n")
