"""What a training worker says: journal first, then the bell; TensorBoard and its like beside it.

Only rank 0 writes; the other ranks' voices reach the supervisor as phases in heartbeats. A full disk never raises here: what
could not be written waits in memory, in order, and `trouble` asks for a pause.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from engine.protocol.home import RunDirectory
from engine.protocol.journal import AnyEntry, Evaluation, Metrics, Phase, Writer
from engine.protocol.worker_link import Link
from engine.training.log_lines import line

if TYPE_CHECKING:
    from engine.training.loggers import Board

PACE = 5.0
"""Seconds between two lines of metrics in the log."""


class Voice:
    """`tell` journals an entry; `phase` says what this rank is doing."""

    def __init__(self, run: RunDirectory, attempt: int, link: Link, rank: int) -> None:
        self.attempt, self.link = attempt, link
        self.trouble = ""
        """Why nothing can be written at present; empty when all is well."""
        self._run = run
        self._writer = Writer(run.events) if rank == 0 else None
        self._waiting: deque[AnyEntry] = deque()
        self._phase = ("", "")
        self.boards: list[Board] = []
        """Told what the journal was told (see `boards`)."""
        self._printed = 0.0

    def tell(self, entry: AnyEntry) -> None:
        if self._writer is None:
            return
        self._waiting.append(entry)
        self.flush()

    def flush(self) -> bool:
        """Write what waits. False, with `trouble` set, while there is no room."""
        if self._writer is None:
            return True
        while self._waiting:
            try:
                size = self._writer.write(self._waiting[0])
            except OSError as error:
                self.trouble = f"disk low: the journal cannot be written ({error.strerror})"
                return False
            entry = self._waiting.popleft()
            self.link.announce_journal(size)
            with contextlib.suppress(OSError):  # what a full disk takes of these is no loss: the journal has it all
                self._draw(entry)
                self._print(entry)
        self.trouble = ""
        return True

    def _print(self, entry: AnyEntry) -> None:
        """A line in log.txt; of metrics not more than one in `PACE` seconds."""
        now = time.monotonic()
        if isinstance(entry, Metrics) and now - self._printed < PACE:
            return
        if text := line(entry):
            self._printed = now
            print(text, flush=True)

    def phase(self, name: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        """Say what this rank is doing; the journal gets every change of `name` and every detail."""
        self.link.report_progress(phase=f"{name} {detail}".strip())
        if (name, detail) != self._phase:
            self._phase = (name, detail)
            self.tell(Phase(attempt=self.attempt, name=name, detail=detail, done=done, total=total))

    @property
    def phase_name(self) -> str:
        return self._phase[0]

    def _draw(self, entry: AnyEntry) -> None:
        if isinstance(entry, (Metrics, Evaluation)):
            for board in self.boards:
                board.write(entry)

    def close_boards(self) -> None:
        while self.boards:
            self.boards.pop().close()
