"""The files that an expansion leaves: written as drafts, under their names when all of them are whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.prep.expand.journal import Answer
from engine.protocol.home import sync

NAMES = ("answers.jsonl", "rows.jsonl", "rejects.jsonl", "report.json")


class Results:
    """Use as a context manager: what was not published when it ends is gone."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._drafts = {name: out / f".{name}.draft" for name in NAMES}
        self._files = {name: draft.open("w", encoding="utf-8") for name, draft in self._drafts.items()}
        self._answers = 0

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        for name, draft in self._drafts.items():
            self._files[name].close()
            draft.unlink(missing_ok=True)

    def answer(self, number: int, answer: Answer) -> None:
        self._answers += 1
        self._write("answers.jsonl", {"request": number, "reply": answer.reply, "finish": answer.finish})

    def row(self, row: dict[str, Any]) -> None:
        self._write("rows.jsonl", row)

    def reject(self, item: int, reason: str, value: Any) -> None:
        """Item `item` (from 1, 0 for all of it) of the answer told last."""
        place = {"file": str(self._out / "answers.jsonl"), "line": self._answers, "offset": 0, "item": item}
        self._write("rejects.jsonl", {**place, "reason": reason, "row": value})

    def publish(self, report: dict[str, Any]) -> None:
        self._files["report.json"].write(json.dumps(report, ensure_ascii=False, indent=1) + "\n")
        for name, draft in self._drafts.items():
            self._files[name].close()
            sync(draft)
            draft.replace(self._out / name)
        sync(self._out)

    def _write(self, name: str, value: Any) -> None:
        # Half a surrogate pair, which a reply may hold, has no UTF-8 form but a JSON one.
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        self._files[name].write(text + "\n")
