"""Reports of a training worker: to its journal first, then to the supervisor and to loggers such as TensorBoard.

Only rank 0 writes; other ranks report their phase in heartbeats. A full disk never raises here: entries that could not
be written wait in memory, in order, and `blocked` holds the reason, so that the run pauses.
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
from engine.training.trackers import Tracker

LOG_SECONDS = 5.0
"""Seconds between two lines of metrics in the log."""


class Logger(Protocol):
    """Writes metrics and evaluations for another program, after they are journaled."""

    def write(self, entry: Metrics | Evaluation) -> None: ...

    def rewind(self, step: int) -> None:
        """What was written after `step` is written again."""

    def close(self) -> None: ...


class Reporter:
    """`write` journals an entry; `set_phase` reports the current activity of this rank."""

    def __init__(self, run: RunDirectory, attempt: int, link: Link, rank: int) -> None:
        self.attempt, self.link = attempt, link
        self.blocked: Pause | None = None
        """The pause required because the journal cannot be written; None when it can."""
        self.loggers: list[Logger] = []
        self._run = run
        self._writer = Writer(run.events) if rank == 0 else None
        self._waiting: deque[AnyEntry] = deque()
        self._phase = ("", "")
        self._printed = 0.0

    def write(self, entry: AnyEntry) -> None:
        """Journal an entry. Does nothing on ranks other than 0."""
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
            with contextlib.suppress(
                OSError
            ):  # the entry is in the journal; losing the rest to a full disk is harmless
                self._log(entry)
                self._print(entry)
        self.blocked = None
        return True

    def set_phase(self, name: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        """Report the current activity of this rank; every change of `name` or `detail` is journaled."""
        self.link.report_progress(phase=f"{name} {detail}".strip())
        if (name, detail) != self._phase:
            self._phase = (name, detail)
            self.write(Phase(attempt=self.attempt, name=name, detail=detail, done=done, total=total))

    @contextlib.contextmanager
    def in_phase(self, name: str, detail: str = "") -> Iterator[None]:
        """Report a phase for the duration of the block, then the phase before it."""
        before = self._phase
        self.set_phase(name, detail)
        yield
        self.set_phase(*before)

    @property
    def phase_name(self) -> str:
        return self._phase[0]

    def rewind_loggers(self, step: int | None) -> None:
        """The run goes on from `step`, or from the beginning, and its later steps are done again."""
        for logger in list(self.loggers):
            with self._guard(logger):
                logger.rewind(-1 if step is None else step)

    def close_loggers(self) -> None:
        for logger in list(self.loggers):
            if isinstance(logger, Tracker):
                logger.end()
        while self.loggers:
            with self._guard(logger := self.loggers.pop()):
                logger.close()

    def close(self) -> None:
        """Close the journal and the loggers. Nothing can be written afterwards."""
        self.close_loggers()
        if self._writer is not None:
            with contextlib.suppress(OSError):  # from a network file system: every entry is written and synced
                self._writer.close()

    @contextlib.contextmanager
    def _guard(self, logger: Logger, step: int = 0) -> Iterator[None]:
        """Losing an entry to a full disk is harmless: the journal has it. A logger that fails otherwise gets no more,
        and the run goes on."""
        try:
            yield
        except OSError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever fails in another program, the run goes on
            if logger in self.loggers:
                self.loggers.remove(logger)
            name = type(logger).__name__
            self.warn(
                code="logging.failed",
                step=step,
                message=f"{name} gets nothing more of this attempt: {type(error).__name__}: {error}",
                hint="the run goes on, and its journal has everything",
            )

    def _print(self, entry: AnyEntry) -> None:
        """Print a line to log.txt; for metrics at most one every `LOG_SECONDS` seconds."""
        now = time.monotonic()
        if isinstance(entry, Metrics) and now - self._printed < LOG_SECONDS:
            return
        if text := format_line(entry):
            self._printed = now
            print(text, flush=True)

    def _log(self, entry: AnyEntry) -> None:
        if isinstance(entry, (Metrics, Evaluation)):
            for logger in list(self.loggers):
                with self._guard(logger, entry.step):
                    logger.write(entry)
