"""Watching runs: what their journals say, when their workers end, and what that makes of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import msgspec
import psutil

from engine.config.profile import ProfileError
from engine.protocol import journal, stages, states
from engine.protocol.messages import (
    Body,
    Instruction,
    Points,
    Problem,
    ProblemError,
    Rank,
    RunChanged,
    RunRemoved,
    Told,
)
from engine.supervisor import hang_detector, processes
from engine.supervisor.crash_report import Death, explain
from engine.supervisor.processes import Leader
from engine.supervisor.queue import Queue
from engine.supervisor.run_record import Record, by_name, log_tail
from engine.supervisor.runs import Runs


class Watch:
    """`publish` sends a body to every attached cockpit, `instruct` an instruction to a worker's address; `background` calls its first
    argument in a thread and then its second in the loop."""

    def __init__(
        self,
        runs: Runs,
        queue: Queue,
        publish: Callable[[Body], None],
        instruct: Callable[[bytes, Instruction], None],
        background: Callable[[Callable[[], None], Callable[[], None]], None],
    ) -> None:
        self.runs, self.queue = runs, queue
        self.publish, self.instruct, self.background = publish, instruct, background

    def joined(self, record: Record, rank: int, identity: bytes) -> None:
        """A rank said hello; rank 0 is told what waited for it."""
        if rank == 0:
            record.identity = identity
            for instruction in record.held:
                self.instruct(identity, instruction)
            record.held = []
        self.ingest(record)

    def heard(self, record: Record, rank: Rank) -> None:
        """A rank's sign of life."""
        record.ranks[rank.rank] = rank
        record.pulse.beat(rank, time.time())

    def listen(self) -> None:
        """Name ranks that have fallen silent: in the log with the stacks of all, and as a warning."""
        for record in self.runs.live():
            if record.leader is None or record.run.state not in (states.RUNNING, states.STOPPING):
                continue
            if record.stage != stages.TRAIN:  # what comes after has one process, which says itself what it does
                continue
            if said := hang_detector.name(record.pulse, time.time()):
                warning = journal.Warn(
                    code="worker.silent",
                    attempt=record.run.attempt,
                    message=f"silent: {said}",
                    hint=f"the stacks of all ranks are in the log: `cockpit logs {record.run.id}`; `cockpit stop --now` ends the run, "
                    "`cockpit resume` goes on from its last checkpoint",
                    step=record.run.step,
                )
                record.warnings.append(warning.message)
                record.note(warning)
                self.publish(Told(run=record.run.id, entry=msgspec.to_builtins(warning)))

    def ingest(self, record: Record) -> bool:
        """Read on in a run's journal and tell what it says. True when there is more to read."""
        entries, more = record.take()
        values = by_name(entries)
        if values:
            self.publish(Points(run=record.run.id, attempt=record.run.attempt, values=values))
        for entry in entries:
            if isinstance(entry, journal.Metrics):
                continue
            self.publish(Told(run=record.run.id, entry=msgspec.to_builtins(entry)))
            if isinstance(entry, journal.Ledger) and entry.attempt == record.run.attempt:
                self._follow_ledger(record, entry)
        return more

    def _follow_ledger(self, record: Record, entry: journal.Ledger) -> None:
        """The worker's own word that it paused or went on is what moves the state: it knows, we would guess."""
        if entry.name == "pause" and record.run.state == states.RUNNING:
            record.move("pause", reason=str(entry.new or "asked"), code=entry.code)
        elif entry.name == "continue" and record.run.state == states.PAUSED:
            record.move("continue")

    def reap(self) -> None:
        """Notice workers that have ended, and move their runs on."""
        for record in list(self.runs.records.values()):
            if record.leader is not None and record.leader.ended():
                self.ended(record, record.leader)

    def ended(self, record: Record, leader: Leader) -> None:
        """The first process is gone. Ranks whose launcher was killed would hold their devices for good: end them, then settle."""
        record.leader, record.identity = None, None
        self.background(lambda: self._end_processes(record), lambda: self._settle(record, leader.pid, leader.status))

    def _end_processes(self, record: Record) -> None:
        processes.end(processes.of_job(record.run.id, self.runs.home.root))

    def _settle(self, record: Record, pid: int, status: int | None) -> None:
        while self.ingest(record):
            pass
        record.note(journal.Exit(attempt=record.run.attempt, pid=pid, status=status))
        record.ranks = {}
        end = record.end
        if end is not None and end.status == "failed":
            self._failed(record, end.problem)
        elif end is not None and end.status == "stopped" and record.stage == stages.TRAIN:
            self._finish(record, "stopped")
        elif self._accomplished(record, status):
            self._go_on(record)
        elif record.stop_asked:
            self._finish(record, "stopped")
        elif status is None:
            record.move(
                "lost",
                code="run.lost",
                reason="its worker is gone and left no word; it ran under an earlier engine, so its exit status is unknown",
            )
        else:
            self._failed(record, self._autopsy(record, status))

    def _failed(self, record: Record, problem: Problem | None) -> None:
        """Restarts are counted by attempts, so that an engine's restart forgets none."""
        record.move("failed", problem=problem)
        record.resume_step = None  # a restart goes on from where it got to, wherever it was sent back to before
        if not record.stop_asked and record.run.attempt <= self._restarts(record):
            self.queue.enqueue(record, "resume")

    def _restarts(self, record: Record) -> int:
        try:
            return self.runs.profile(record).launch.restarts
        except (ProfileError, OSError):
            return 0

    def _finish(self, record: Record, event: str) -> None:
        if event == "stopped" and record.run.state != states.STOPPING:
            record.move("stop")
        record.move(event)

    def _accomplished(self, record: Record, status: int | None) -> bool:
        """Its stage did what it is for. Training says so itself; its process may be killed on the way out."""
        result = record.directory.result(record.stage)
        if record.stage == stages.TRAIN:
            return record.end is not None and record.end.status == "completed" and result.is_file()
        return status in (0, None) and result.is_file()

    def _go_on(self, record: Record) -> None:
        following = self.queue.following(record)
        if following is None:
            self._finish(record, "done")
        elif record.stop_asked:
            self._finish(record, "stopped")
        else:
            self.queue.start(record, following)

    def _autopsy(self, record: Record, status: int) -> Problem:
        death = Death(status, log_tail(record.directory.log), processes.oom_kills() > record.oom_kills)
        try:
            profile = self.runs.profile(record)
        except (ProfileError, OSError):
            profile = None
        return explain(death, profile)

    def stop_without_asking(self, record: Record) -> None:
        """End a queued or preparing run, or a running one `--now`: nothing is asked of the worker."""
        record.stop_asked = True
        if record.run.state == states.QUEUED:
            self.queue.leave(record)
            record.move("stop")
            record.move("stopped")
            return
        if record.run.state != states.STOPPING:
            record.move("stop")
        self.background(lambda: self._end_processes(record), self.reap)

    def delete(self, record: Record) -> None:
        """Remove an ended run's directory: renamed first, so that a half-deleted run is never seen. Raises ProblemError."""
        if record.run.state not in states.ENDED:
            raise ProblemError(
                Problem(
                    code="run.live",
                    title=f"{record.run.id} is {record.run.state}",
                    hint=f"cockpit stop {record.run.id}",
                )
            )
        record.close()
        doomed = record.directory.path.with_name(f".deleted-{record.run.id}")
        record.directory.path.rename(doomed)
        self.runs.forget(record)
        shutil.rmtree(doomed, ignore_errors=True)
        self.publish(RunRemoved(run=record.run.id))

    def changed(self) -> list[Record]:
        """Records to publish and to store, each once; publishes them."""
        records = [record for record in self.runs.records.values() if record.changed]
        for record in records:
            record.changed = False
            self.publish(RunChanged(run=record.run))
        return records

    def pids(self, record: Record) -> list[int]:
        """All live processes of the run, launcher and ranks."""
        found = processes.of_job(record.run.id, self.runs.home.root) if record.leader else []
        return sorted(process.pid for process in found if psutil.pid_exists(process.pid))
