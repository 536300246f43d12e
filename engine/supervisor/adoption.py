"""Takes over from an earlier supervisor: adopts the runs that are alive, and finds out how the others ended."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable

from engine.config.profile import ProfileError
from engine.protocol import journal, stages, states
from engine.protocol.file_channel import SupervisorFiles
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Run
from engine.supervisor.processes import Leader
from engine.supervisor.queue import Queue
from engine.supervisor.run_files import gather_evidence, list_directories, read_record, settle
from engine.supervisor.run_monitor import RunMonitor
from engine.supervisor.run_record import Record, replay
from engine.supervisor.runs import Runs
from engine.supervisor.slurm import SlurmJob


def adopt_runs(
    runs: Runs, queue: Queue, monitor: RunMonitor, indexed: dict[str, tuple[Run, int]], backlog: Backlog
) -> None:
    """Read every run directory into `runs`, and adopt its run. `indexed` is the registry's content; the `backlog` gets
    what can be read later."""
    for left in runs.home.runs.glob(".deleted-*"):
        shutil.rmtree(left, ignore_errors=True)
    for directory in list_directories(runs.home.runs):
        try:
            _adopt_directory(runs, queue, monitor, directory, indexed, backlog)
        except Exception as error:  # noqa: BLE001 - whatever is in one directory must not cost the other runs
            print(f"{str(directory.path)!a} cannot be read: {type(error).__name__}: {error}", flush=True)
    queue.waiting.sort()


def _adopt_directory(
    runs: Runs,
    queue: Queue,
    monitor: RunMonitor,
    directory: RunDirectory,
    indexed: dict[str, tuple[Run, int]],
    backlog: Backlog,
) -> None:
    before = indexed.get(directory.id)
    found = read_record(directory, before)
    if found is None:
        return
    record, launched = found
    runs.records[record.run.id] = record
    live = runs.is_local(record) and (record.run.state in states.LIVE or not record.run.state)
    record.changed = live or before is None or record.run != before[0]
    with record.isolate():
        if live:
            while monitor.read_journal(record):
                backlog.index(record)
                backlog.wait()
            backlog.describe(record)
            if not settle(record):
                _adopt(record, launched, queue, monitor)
        else:
            backlog.add(record)


PATIENCE = 1.0
"""Seconds that a request may wait for the journal of the run that it asks about."""


class Backlog:
    """Journals and profiles of ended runs that the registry does not know yet. They are read bit by bit while the
    supervisor has nothing else to do."""

    def __init__(self, runs: Runs, index: Callable[[Record], None], wait: Callable[[], None] = lambda: None) -> None:
        """`index` gives the registry what it lacks of a run, `wait` returns when it has room for more."""
        self.runs, self.index, self.wait = runs, index, wait
        self._waiting: deque[Record] = deque()

    def add(self, record: Record) -> None:
        """Read what is missing of this run later."""
        if not record.run.method or record.has_unread():
            self._waiting.append(record)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def prefer(self, record: Record) -> None:
        """Read this run before the others: somebody has asked for it. A journal that takes longer than `PATIENCE` is
        read on afterwards."""
        if record not in self._waiting:
            return
        self._waiting.remove(record)
        self._waiting.appendleft(record)
        until = time.monotonic() + PATIENCE
        while self._waiting and self._waiting[0] is record and time.monotonic() < until:
            self.advance()

    def advance(self) -> None:
        """Read a profile or a part of a journal: some ten milliseconds."""
        record = self._waiting[0]
        more = False
        if record.run.id in self.runs.records:
            with record.isolate():
                if record.has_unread():
                    _, more = record.read_events()
                    more = True
                else:
                    self.describe(record)
                self.index(record)
        if not more:
            self._waiting.popleft()

    def describe(self, record: Record) -> None:
        """Put what the profile says into the summary, unless it is there."""
        if record.run.method:
            return
        run = record.run
        journalled = run.max_steps, run.epochs
        try:
            self.runs.describe(record, self.runs.load_profile(record, keep=False))
            if run.global_batch:  # it has started: its journal knows what has been set since
                run.max_steps, run.epochs = journalled
            record.changed = True
        except (ProfileError, OSError):
            pass  # the profile's sources have gone since: the run is shown all the same


def refresh_runs_of_other_hosts(runs: Runs, monitor: RunMonitor) -> None:
    """Read the journals of live runs of other hosts that share this home. These runs are shown, never changed."""
    for record in runs.records.values():
        if not runs.is_local(record) and record.run.state in states.LIVE:
            with record.isolate():
                fresh, _ = replay(record.directory, record.job, None, 0)
                record.run.state, record.run.problem = fresh.run.state, fresh.run.problem
                record.run.reason, record.run.code = fresh.run.reason, fresh.run.code
                record.run.tags, record.run.note, record.run.pinned = fresh.run.tags, fresh.run.note, fresh.run.pinned
                record.run.group, record.run.priority = fresh.run.group, fresh.run.priority
                record.changed = True
                monitor.read_journal(record)


def _adopt(record: Record, launched: journal.Launched | None, queue: Queue, monitor: RunMonitor) -> None:
    run = record.run
    if run.state == "":  # submitted, and the engine died before it was queued
        record.move("submitted")
    if launched is not None and (launched.slurm or launched.slurm_name) and run.state in states.LIVE:
        _adopt_slurm_job(record, launched, queue, monitor)
        return
    if run.state == states.QUEUED:
        queue.waiting.adopt(record)
    if run.state not in states.STARTED:
        return
    record.stop_requested = run.state == states.STOPPING
    if launched is None:
        record.move("lost", code="run.lost", reason="the engine ended between two stages of the run")
        return
    leader = Leader.adopt(run.id, launched.pid, launched.start_time, launched.identity)
    if leader is not None:
        record.leader = leader
        if monitor.runs.is_elsewhere(record) and record.stage == stages.TRAIN:
            record.files = SupervisorFiles(record.directory.control, run.attempt, fresh=False)
        record.write_lifecycle(journal.Adopted(attempt=run.attempt, pid=leader.pid))
    else:
        _find_end(record)
        monitor.handle_exit(record, Leader(launched.pid, launched.start_time, launched.identity))


def _find_end(record: Record) -> None:
    """Look in the part of the journal that the registry has for the end of the training that was to be followed."""
    if record.stage == stages.TRAIN and record.end is None:
        end = gather_evidence(record.directory).end
        record.end = end if end is not None and end.attempt >= record.run.attempt else None


def _adopt_slurm_job(record: Record, launched: journal.Launched, queue: Queue, monitor: RunMonitor) -> None:
    """Follow a job again that has gone on in Slurm, or ended there. One that may not have been submitted is submitted,
    unless there is one of its name."""
    run = record.run
    if not launched.slurm and run.state in (states.QUEUED, states.PREPARING):
        if run.state == states.PREPARING:
            record.move("requeue")
        queue.waiting.adopt(record)
        return
    if not launched.slurm and run.state == states.RUNNING:  # a stage after training
        monitor.start_next_stage(record)
        return
    record.stop_requested = run.state == states.STOPPING
    _find_end(record)
    job = SlurmJob(
        name=launched.slurm_name,
        conf=launched.slurm_conf,
        job=launched.slurm,
        attempt=launched.attempt,
        recorded=bool(launched.slurm),
    )
    job.restarts = max(0, run.attempt - launched.attempt)
    record.leader, record.files = job, SupervisorFiles(record.directory.control, run.attempt, fresh=False)
    slurm = monitor.queue.launcher.slurm
    slurm.watch(job)
    if record.stop_requested and record.end is None and not record.files.waits_for("stop"):
        slurm.cancel(job)
    record.write_lifecycle(journal.Adopted(attempt=run.attempt, pid=0))
