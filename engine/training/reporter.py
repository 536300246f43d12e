"""What a training worker reports: to its journal first, then to the supervisor; loggers such as TensorBoard get it too.

Only rank 0 writes; other ranks report their phase in heartbeats. A full disk never raises here: entries that could not be written wait in
memory, in order, and `blocked` says why, so that the run pauses.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from engine.protocol.codes import Pause
from engine.protocol.home import RunDirectory
from engine.protocol.journal import AnyEntry, Evaluation, Metrics, Phase, Warn, Writer
from engine.protocol.worker_link import Link
from engine.training.log_lines import format_line

LOG_SECONDS = 5.0
"""Seconds between two lines of metrics in the log."""


class Logger(Protocol):
    """What another program reads: gets metrics and evaluations after the journal did."""

    def write(self, entry: Metrics | Evaluation) -> None: ...

    def close(self) -> None: ...


class Reporter:
    """`write` journals an entry; `set_phase` reports what this rank is doing."""

    def __init__(self, run: RunDirectory, attempt: int, link: Link, rank: int) -> None:
        self.attempt, self.link = attempt, link
        self.blocked: Pause | None = None
        """Why nothing can be written at present; None when all is well."""
        self.loggers: list[Logger] = []
        self._run = run
        self._writer = Writer(run.events) if rank == 0 else None
        self._waiting: deque[AnyEntry] = deque()
        self._phase = ("", "")
        self._printed = 0.0

    def write(self, entry: AnyEntry) -> None:
        """Journal an entry; on other ranks than 0 nothing."""
        if self._writer is None:
            return
        self._waiting.append(entry)
        self.flush()

    def warn(self, *, code: str, message: str, hint: str, step: int = 0) -> None:
        """Journal a warning."""
        self.write(Warn(attempt=self.attempt, code=code, step=step, message=message, hint=hint))

    def flush(self) -> bool:
        """Write the waiting entries. False, with `blocked` set, while the disk is full."""
        if self._writer is None:
            return True
        while self._waiting:
            try:
                size = self._writer.write(self._waiting[0])
            except OSError as error:
                reason = f"disk low: the journal cannot be written ({error.strerror})"
                self.blocked = Pause(code="pause.disk_low", reason=reason)
                return False
            entry = self._waiting.popleft()
            self.link.announce_journal(size)
            with contextlib.suppress(OSError):  # the journal has it; what else a full disk takes is no loss
                self._log(entry)
                self._print(entry)
        self.blocked = None
        return True

    def set_phase(self, name: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        """Report what this rank is doing; the journal gets every change of `name` or `detail`."""
        self.link.report_progress(phase=f"{name} {detail}".strip())
        if (name, detail) != self._phase:
            self._phase = (name, detail)
            self.write(Phase(attempt=self.attempt, name=name, detail=detail, done=done, total=total))

    @contextlib.contextmanager
    def in_phase(self, name: str, detail: str = "") -> Iterator[None]:
        """Report a phase for as long as the block takes, then the phase before it."""
        before = self._phase
        self.set_phase(name, detail)
        yield
        self.set_phase(*before)

    @property
    def phase_name(self) -> str:
        return self._phase[0]

    def close_loggers(self) -> None:
        while self.loggers:
            self.loggers.pop().close()

    def _print(self, entry: AnyEntry) -> None:
        """A line in log.txt; for metrics at most one in `LOG_SECONDS` seconds."""
        now = time.monotonic()
        if isinstance(entry, Metrics) and now - self._printed < LOG_SECONDS:
            return
        if text := format_line(entry):
            self._printed = now
            print(text, flush=True)

    def _log(self, entry: AnyEntry) -> None:
        if isinstance(entry, (Metrics, Evaluation)):
            for logger in self.loggers:
                logger.write(entry)
