"""A journal of requests and answers on disk, so that nothing is requested or paid for twice. One JSON object per line:

    {"settings": {…}}                                               the first line
    {"request": 3, "worst": [prompt, reply]}                        before an attempt is sent
    {"request": 3, "used": [prompt, reply]}                         the attempt failed; the tokens that it may have cost
    {"request": 3, "used": […], "reply": "…", "finish": "stop"}     the answer
    {"request": 3, "failed": "reason"}                              the request will not be answered

An attempt without a `used` line was pending when the process was killed: it counts with its worst case.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from engine.llm_api.budget import Usage
from engine.protocol.home import write_all


class Answer(NamedTuple):
    """The outcome of a request. If the service gave no answer, `reply` is None and `finish` is the reason."""

    reply: str | None
    finish: str


class Journal:
    """One process at a time can open it. Reads existing entries and removes an incomplete last line."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Raises ValueError if another process has opened the file, or if it was begun with other settings."""
        self.answers: dict[int, Answer] = {}
        self.used: list[Usage] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ValueError(f"another process is using {path}")
        try:
            kept = self._read()
            if kept is None:
                self._write({"settings": settings})
            elif kept != settings:
                names = sorted(name for name in kept.keys() | settings.keys() if kept.get(name) != settings.get(name))
                raise ValueError(
                    f"{path} was begun with other {', '.join(names)}: use another folder, or remove the file"
                )
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        os.close(self._file)

    def record_sent(self, request: int, worst: Usage) -> None:
        self._write({"request": request, "worst": worst})

    def record_lost(self, request: int, used: Usage) -> None:
        self._write({"request": request, "used": used})

    def record_answer(self, request: int, reply: str, finish: str, used: Usage) -> None:
        self.answers[request] = Answer(reply, finish)
        self._write({"request": request, "used": used, "reply": reply, "finish": finish})

    def record_failure(self, request: int, reason: str) -> None:
        self.answers[request] = Answer(None, reason)
        self._write({"request": request, "failed": reason})

    def _read(self) -> dict[str, Any] | None:
        """Read all lines; returns the settings, None for a new file."""
        settings: dict[str, Any] | None = None
        pending: dict[int, Usage] = {}
        good = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                good += len(line)
                entry = json.loads(line)
                if "settings" in entry:
                    settings = entry["settings"]
                    continue
                request = entry["request"]
                if "worst" in entry:
                    # A second attempt, while the first one has no result: both may have been paid for.
                    self.used += [pending.pop(request)] if request in pending else []
                    pending[request] = Usage(*entry["worst"])
                if "used" in entry:
                    pending.pop(request, None)
                    self.used.append(Usage(*entry["used"]))
                if "reply" in entry:
                    self.answers[request] = Answer(entry["reply"], entry["finish"])
                if "failed" in entry:
                    self.answers[request] = Answer(None, entry["failed"])
        self.used += pending.values()
        os.ftruncate(self._file, good)
        os.lseek(self._file, good, os.SEEK_SET)
        return settings

    def _write(self, entry: dict[str, Any]) -> None:
        content = (json.dumps(entry, ensure_ascii=True) + "\n").encode()
        write_all(self._file, content)
        if "reply" in entry:
            os.fsync(self._file)  # it was paid for
