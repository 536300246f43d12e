"""The order of the queue: by priority, and within one by place. Each waiting run's journal holds both, so that the
order is the same after the engine was killed.

A place is a number on the clock's scale, in seconds since the epoch: a run that is moved gets one between those of its
new neighbours, so that only its own journal changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.config.profile import ProfileError
from engine.protocol import journal, states
from engine.protocol.messages import Problem, ProblemError, Reorder, Run
from engine.supervisor.run_record import Record
from engine.supervisor.runs import Runs

HIGHEST = 100
"""Priorities are from `-HIGHEST` to `HIGHEST`."""
_APART = 1e-3


class WaitingRuns:
    """The ids of the waiting runs are in `order`; their positions are kept up to date in their summaries."""

    def __init__(self, runs: Runs, clock: Callable[[], float] = time.time) -> None:
        self.runs = runs
        self.order: list[str] = []
        self._clock = clock

    def add(self, record: Record, *, first: bool = False) -> None:
        """Put a run behind those of its priority, or with `first` before them."""
        at = self._first_of(record.run.priority, behind=not first)
        self.order.insert(at, record.run.id)
        self._find_place(at)
        self._journal(record)
        self.renumber()

    def adopt(self, record: Record) -> None:
        """Put a run where its journal says. Without a word there, it has the priority of its profile, and the place
        that an engine of an older version gave it: that is in the registry, if at all."""
        run = record.run
        if not record.place:
            record.place = -1 / run.position if run.position else run.created  # before all that have come since
            try:
                run.priority = self.runs.load_profile(record, keep=False).launch.priority
            except (ProfileError, OSError):
                pass  # it fails when it is to start
            self._journal(record)
        self.order.append(run.id)

    def sort(self) -> None:
        records = self.runs.records
        self.order.sort(key=lambda run: (-records[run].run.priority, records[run].place))
        self.renumber()

    def remove(self, record: Record) -> None:
        self.order.remove(record.run.id)
        record.run.position, record.run.holders = 0, []
        record.changed = True
        self.renumber()

    def reorder(self, record: Record, message: Reorder) -> Run:
        """Do what a request asks for. Raises ProblemError."""
        if message.priority is not None:
            self.prioritise(record, message.priority)
        return self.move(record, message.position) if message.position > 0 else record.run

    def move(self, record: Record, position: int) -> Run:
        """Move a run to a position, from 1. Among runs of another priority it takes over theirs: else it could not stay
        there. Raises ProblemError when it is not queued."""
        self._check_queued(record)
        self.order.remove(record.run.id)
        at = max(0, min(position - 1, len(self.order)))
        self.order.insert(at, record.run.id)
        before, after = self._neighbour(at - 1), self._neighbour(at + 1)
        highest = before.run.priority if before else HIGHEST
        lowest = after.run.priority if after else -HIGHEST
        record.run.priority = max(lowest, min(highest, record.run.priority))
        self._find_place(at)
        self._journal(record)
        self.renumber()
        return record.run

    def prioritise(self, record: Record, priority: int) -> Run:
        """Give a waiting run a priority, behind those that have it already. Raises ProblemError."""
        self._check_queued(record)
        if abs(priority) > HIGHEST:
            raise ProblemError(
                Problem(
                    code="request.invalid",
                    title=f"{priority} is no priority",
                    hint=f"priorities are from -{HIGHEST} to {HIGHEST}; runs with a higher one start earlier",
                )
            )
        if priority != record.run.priority:
            self.order.remove(record.run.id)
            record.run.priority = priority
            self.add(record)
        return record.run

    def renumber(self) -> None:
        """Update the position of each waiting run."""
        for position, run_id in enumerate(self.order, 1):
            record = self.runs.records[run_id]
            if record.run.position != position:
                record.run.position, record.changed = position, True

    def _check_queued(self, record: Record) -> None:
        if record.run.id not in self.order:
            raise ProblemError(
                Problem(
                    code="run.not_queued",
                    title=f"{record.run.id} is not queued",
                    cause="it waits in Slurm, or in the queue of another host"
                    if record.run.state == states.QUEUED
                    else f"it is {record.run.state}",
                )
            )

    def _first_of(self, priority: int, *, behind: bool) -> int:
        """Where the runs of a priority begin in the order, or `behind` them."""
        records = self.runs.records
        lower = (
            at
            for at, run in enumerate(self.order)
            if records[run].run.priority < priority or (not behind and records[run].run.priority == priority)
        )
        return next(lower, len(self.order))

    def _neighbour(self, at: int) -> Record | None:
        return self.runs.records[self.order[at]] if 0 <= at < len(self.order) else None

    def _find_place(self, at: int) -> None:
        """Give the run that is at this index of the order a place between its neighbours of the same priority."""
        record, now = self.runs.records[self.order[at]], self._clock()
        before, after = (
            each.place if each is not None and each.run.priority == record.run.priority else None
            for each in (self._neighbour(at - 1), self._neighbour(at + 1))
        )
        if before is None and after is None:
            record.place = now
        elif after is None and before is not None:
            record.place = max(now, before + _APART)  # the clock may have been set back
        elif before is None and after is not None:
            record.place = after - 1.0
        elif before is not None and after is not None:
            record.place = (before + after) / 2
            if not before < record.place < after:
                self._spread(record.run.priority, now)

    def _spread(self, priority: int, now: float) -> None:
        """Places have come too close: give all runs of a priority new ones, a second apart."""
        records = [self.runs.records[run] for run in self.order]
        same = [record for record in records if record.run.priority == priority]
        for back, record in enumerate(reversed(same)):
            record.place = now - back
            self._journal(record)

    def _journal(self, record: Record) -> None:
        run = record.run
        entry = journal.Queued(time=time.time(), attempt=run.attempt, priority=run.priority, place=record.place)
        record.write_lifecycle(entry)
        record.changed = True
