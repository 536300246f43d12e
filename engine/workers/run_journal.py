"""Writes a run's journal in the stages beside training: progress as often as a screen can show it, warnings, and a
failure."""

from __future__ import annotations

import sys
import time

from engine.protocol.home import RunDirectory
from engine.protocol.journal import End, EventEntry, Phase, Warn, Writer
from engine.protocol.messages import Problem
from engine.protocol.worker_link import Link

_EVERY = 0.5
"""Seconds between two entries of one phase."""


class RunJournal:
    """A run's journal while one stage writes it. Each entry is announced to the supervisor."""

    def __init__(self, run: RunDirectory, attempt: int, link: Link) -> None:
        self.attempt = attempt
        self._writer, self._link = Writer(run.events), link
        self._phase, self._written = "", 0.0

    def progress(self, phase: str, done: int, total: int) -> None:
        """Write the phase when it is new or done, and otherwise at most every `_EVERY` seconds."""
        self._link.report_progress(phase=phase)
        now = time.monotonic()
        if phase == self._phase and done < total and now - self._written < _EVERY:
            return
        self._phase, self._written = phase, now
        self.write(Phase(attempt=self.attempt, name=phase, done=done, total=total))

    def warn(self, message: str, hint: str, step: int | None = None, *, code: str) -> None:
        self.write(Warn(attempt=self.attempt, code=code, message=message, hint=hint, step=step))

    def fail(self, problem: Problem, step: int = 0) -> None:
        print(problem, problem.traceback, sep="\n", file=sys.stderr)
        self.write(End(attempt=self.attempt, step=step, status="failed", problem=problem))

    def write(self, entry: EventEntry) -> None:
        self._link.announce_journal(self._writer.write(entry))
