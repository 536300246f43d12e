"""A run's journal in the hands of a worker that is not training: phases at a pace that a screen can follow, warnings, a failure."""

from __future__ import annotations

import sys
import time

from engine.protocol.home import RunDirectory
from engine.protocol.journal import End, EventEntry, Phase, Warn, Writer
from engine.protocol.messages import Problem
from engine.protocol.worker_link import Link

_EVERY = 0.5
"""Seconds between two journal lines of one phase."""


class Journal:
    """The run's journal while one stage writes it."""

    def __init__(self, run: RunDirectory, attempt: int, link: Link) -> None:
        self.attempt = attempt
        self._writer, self._link = Writer(run.events), link
        self._phase, self._told = "", 0.0

    def progress(self, phase: str, done: int, total: int) -> None:
        """Each new phase and each phase's end is written, what lies between at most every `_EVERY` seconds."""
        self._link.alive(phase=phase)
        now = time.monotonic()
        if phase == self._phase and done < total and now - self._told < _EVERY:
            return
        self._phase, self._told = phase, now
        self.write(Phase(attempt=self.attempt, name=phase, done=done, total=total))

    def warn(self, message: str, hint: str, step: int | None = None, *, code: str) -> None:
        self.write(Warn(attempt=self.attempt, code=code, message=message, hint=hint, step=step))

    def fail(self, problem: Problem, step: int = 0) -> None:
        print(problem, problem.traceback, sep="\n", file=sys.stderr)
        self.write(End(attempt=self.attempt, step=step, status="failed", problem=problem))

    def write(self, entry: EventEntry) -> None:
        self._link.written(self._writer.write(entry))
