"""Takes over from an earlier supervisor: adopts the runs that are alive, and finds out how the others ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from engine.config.profile import ProfileError
from engine.protocol import journal, states
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Run
from engine.supervisor.processes import Leader
from engine.supervisor.queue import Queue
from engine.supervisor.run_monitor import RunMonitor
from engine.supervisor.run_record import Record, read_job, replay
from engine.supervisor.runs import Runs


def adopt_runs(
    runs: Runs, queue: Queue, monitor: RunMonitor, indexed: dict[str, tuple[Run, int]], index: Callable[[Record], None]
) -> None:
    """Read every run directory into `runs`, and adopt its run. `indexed` is the registry's content; `index` gives it
    what was read."""
    for left in runs.home.runs.glob(".deleted-*"):
        shutil.rmtree(left, ignore_errors=True)
    for path in sorted(runs.home.runs.iterdir()):
        directory = RunDirectory(path)
        job = read_job(directory)
        if job is None:
            continue
        record, launched = replay(directory, job, *indexed.get(directory.id, (None, 0)))
        runs.records[record.run.id] = record
        record.changed = True
        while monitor.read_journal(record):
            index(record)
        try:
            runs.describe(record, runs.load_profile(record))
        except (ProfileError, OSError):
            pass  # the profile's sources have gone since: the run is shown all the same
        if runs.is_local(record):
            _adopt(record, launched, queue, monitor)
    queue.order.sort(key=lambda run_id: runs.records[run_id].run.position or runs.records[run_id].run.created)
    queue.renumber()


def refresh_runs_of_other_hosts(runs: Runs, monitor: RunMonitor) -> None:
    """Read the journals of live runs of other hosts that share this home. These runs are shown, never changed."""
    for record in runs.records.values():
        if not runs.is_local(record) and record.run.state in states.LIVE:
            fresh, _ = replay(record.directory, record.job, None, 0)
            record.run.state, record.run.problem = fresh.run.state, fresh.run.problem
            record.run.reason, record.run.code = fresh.run.reason, fresh.run.code
            record.changed = True
            monitor.read_journal(record)


def _adopt(record: Record, launched: journal.Launched | None, queue: Queue, monitor: RunMonitor) -> None:
    run = record.run
    if run.state == "":  # submitted, and the engine died before it was queued
        record.move("submitted")
    if run.state == states.QUEUED:
        queue.order.append(run.id)
    if run.state not in states.STARTED:
        return
    record.stop_requested = run.state == states.STOPPING
    if launched is None:
        record.move("lost", code="run.lost", reason="the engine ended between two stages of the run")
        return
    leader = Leader.adopt(run.id, launched.pid, launched.start_time, launched.identity)
    if leader is not None:
        record.leader = leader
        record.write_lifecycle(journal.Adopted(attempt=run.attempt, pid=leader.pid))
    else:
        monitor.handle_exit(record, Leader(launched.pid, launched.start_time, launched.identity))
