"""Taking over from the supervisor before: adopt what lives, settle what died while nobody watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from engine.config.profile import ProfileError
from engine.protocol import journal, states
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Run
from engine.protocol.wire import process_alive
from engine.supervisor.processes import Leader
from engine.supervisor.queue import Queue
from engine.supervisor.run_monitor import Watch
from engine.supervisor.run_record import Record, read_job, replay
from engine.supervisor.runs import Runs


def take_over(
    runs: Runs, queue: Queue, watch: Watch, indexed: dict[str, tuple[Run, int]], store: Callable[[Record], None]
) -> None:
    """Read every run directory; adopt what lives, settle what died while nobody watched. `store` indexes what was read."""
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
        while watch.ingest(record):
            store(record)
        try:
            runs.describe(record, runs.profile(record))
        except (ProfileError, OSError):
            pass  # an ended run whose sources have gone is still worth showing
        if runs.ours(record):
            _settle(record, launched, queue, watch)
    queue.order.sort(key=lambda run_id: runs.records[run_id].run.position or runs.records[run_id].run.created)
    queue.renumber()


def refresh_foreign(runs: Runs, watch: Watch) -> None:
    """Read on in live runs of other hosts that share this home. They are shown, never touched."""
    for record in runs.records.values():
        if not runs.ours(record) and record.run.state in states.LIVE:
            fresh, _ = replay(record.directory, record.job, None, 0)
            record.run.state, record.run.problem = fresh.run.state, fresh.run.problem
            record.run.reason, record.run.code = fresh.run.reason, fresh.run.code
            record.changed = True
            watch.ingest(record)


def _settle(record: Record, launched: journal.Launched | None, queue: Queue, watch: Watch) -> None:
    run = record.run
    if run.state == "":  # submitted, and the engine died before it was queued
        record.move("submitted")
    if run.state == states.QUEUED:
        queue.order.append(run.id)
    if run.state not in states.STARTED:
        return
    record.stop_asked = run.state == states.STOPPING
    leader = Leader(launched.pid, launched.start_time) if launched else None
    if leader is not None and process_alive(leader.pid, leader.start_time):
        record.leader = leader
        record.note(journal.Adopted(attempt=run.attempt, pid=leader.pid))
    elif leader is not None:
        watch.ended(record, leader)
    else:
        record.move("lost", code="run.lost", reason="the engine ended while the run was between two workers")
