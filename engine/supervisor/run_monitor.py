"""Follows the runs: reads their journals, notices when their workers end or hang, and moves their states."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Collection

import msgspec
import psutil

from engine.config.profile import ProfileError
from engine.protocol import journal, stages, states
from engine.protocol.file_channel import ended_file
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
from engine.supervisor.crash_report import WorkerExit, find_killed_rank, report_crash
from engine.supervisor.processes import Leader
from engine.supervisor.queue import Queue
from engine.supervisor.run_files import read_problem
from engine.supervisor.run_record import Record, group_points, read_log_tail
from engine.supervisor.runs import Runs
from engine.supervisor.slurm import SlurmJob

WORD = 60.0
"""Seconds that the last entry of a run on other hosts may take to be seen here."""
CAUSES_OF_LOSS = ("launch.host_lost", "worker.killed", "memory.exhausted", "memory.host_exhausted")
"""Codes of problems of one host or rank because of which the others fail."""


class RunMonitor:
    """`publish` sends an event to every attached client, `instruct` an instruction to a worker's address;
    `run_in_background` calls its first argument in a thread, and then its second in the loop."""

    def __init__(
        self,
        runs: Runs,
        queue: Queue,
        publish: Callable[[Body], None],
        instruct: Callable[[bytes, Instruction], None],
        run_in_background: Callable[[Callable[[], None], Callable[[], None]], None],
    ) -> None:
        self.runs, self.queue = runs, queue
        self.publish, self.instruct, self.run_in_background = publish, instruct, run_in_background

    def register_rank(self, record: Record, rank: int, identity: bytes) -> None:
        """A rank has connected. Rank 0 gets the instructions that were held for it."""
        if rank == 0:
            record.identity = identity
            for instruction in record.held_instructions:
                self.instruct(identity, instruction)
            record.held_instructions = []
        self.read_journal(record)

    def take_heartbeat(self, record: Record, rank: Rank) -> None:
        record.ranks[rank.rank] = rank
        record.heartbeats.add(rank, time.monotonic())

    def warn_of_hangs(self) -> None:
        """Warn about ranks that hang, and have the stacks of all ranks written to the log."""
        for record in self.runs.list_live():
            if record.leader is None or record.run.state not in (states.RUNNING, states.STOPPING):
                continue
            if record.stage != stages.TRAIN:  # the other stages have one process, which reports its progress itself
                continue
            if hung := hang_detector.report_hangs(record.heartbeats, time.monotonic()):
                if record.files is not None:
                    record.files.send(Instruction(id=uuid.uuid4().hex, name="stacks"))
                self.warn(
                    record,
                    "worker.silent",
                    f"hanging: {hung}",
                    f"the stacks of all ranks are in the log: `cockpit logs {record.run.id}`; "
                    "`cockpit stop --now` ends the run, `cockpit resume` goes on from its last checkpoint",
                )

    def warn(self, record: Record, code: str, message: str, hint: str) -> None:
        """Warn the user in the supervisor's own name: in the run's lifecycle, and in every attached client."""
        run = record.run
        warning = journal.Warn(code=code, attempt=run.attempt, message=message, hint=hint, step=run.step)
        record.warnings.append(message)
        record.write_lifecycle(warning)
        self.publish(Told(run=run.id, entry=msgspec.to_builtins(warning)))

    def read_journal(self, record: Record) -> bool:
        """Read the next part of a run's journal and publish it. True when there is more to read."""
        with record.isolate():
            return self._read_journal(record)
        return False

    def _read_journal(self, record: Record) -> bool:
        entries, more = record.read_events()
        values = group_points(entries)
        if values:
            self.publish(Points(run=record.run.id, attempt=record.run.attempt, values=values))
        for entry in entries:
            if isinstance(entry, journal.Metrics):
                continue
            self.publish(Told(run=record.run.id, entry=msgspec.to_builtins(entry)))
            if isinstance(entry, journal.Ledger) and entry.attempt == record.run.attempt:
                self._apply_ledger(record, entry)
        return more

    def _apply_ledger(self, record: Record, entry: journal.Ledger) -> None:
        """The state follows the worker's own entry that it has paused or gone on: only the worker knows when."""
        if entry.name == "pause" and record.run.state == states.RUNNING:
            record.move("pause", reason=str(entry.new or "asked"), code=entry.code)
        elif entry.name == "continue" and record.run.state == states.PAUSED:
            record.move("continue")

    def reap(self) -> None:
        """Notice workers that have ended, and move the states of their runs."""
        for record in list(self.runs.records.values()):
            with record.isolate():
                if record.leader is not None and record.leader.has_ended() and not self._wait_for_word(record):
                    self.handle_exit(record, record.leader)

    def _wait_for_word(self, record: Record) -> bool:
        """Whether a run on other hosts has ended well and its word of that may still come: over NFS a file may look as
        it was for a while."""
        if record.files is None or record.leader is None or record.leader.status != 0 or record.stop_requested:
            return False
        while self.read_journal(record):
            pass
        if record.end is not None or record.stage in stages.AFTER:
            return False
        now = time.monotonic()
        record.word_until = record.word_until or now + WORD
        return now < record.word_until

    def handle_exit(self, record: Record, leader: Leader) -> None:
        """A run's first process has ended. End the ranks that are left, which would hold their devices for good; then
        move the state."""
        record.leader, record.identity, record.files, record.word_until = None, None, None, 0.0
        if isinstance(leader, SlurmJob):
            self._settle_exit(record, leader)
        else:
            self.run_in_background(lambda: self._end_processes(record), lambda: self._settle_exit(record, leader))

    def _settle_exit(self, record: Record, leader: Leader) -> None:
        with record.isolate():
            self._move_after_exit(record, leader)
        if record.leader is None and record.run.state in states.STARTED:  # its files kept it from being moved
            record.move("lost", code="run.damaged", reason=f"damaged: {'; '.join(record.damage[:1])}")

    def _end_processes(self, record: Record) -> None:
        processes.end_processes(processes.find_processes(record.run.id, self.runs.home.root, record.leader))

    def _move_after_exit(self, record: Record, leader: Leader) -> None:
        while self.read_journal(record):
            pass
        status = leader.status
        if isinstance(leader, SlurmJob):  # the next stage is refused under an earlier number
            record.run.attempt = record.newest_attempt()
        record.write_lifecycle(journal.Exit(attempt=record.run.attempt, pid=leader.pid, status=status))
        record.ranks = {}
        end = record.end
        ended, succeeded = self._explain_end(record, leader), self._has_succeeded(record, status)
        if ended is not None and not succeeded and not record.stop_requested:
            self._settle_ended_job(record, leader, ended)
        elif end is not None and end.status == "failed":
            self._fail(record, self._name_killed_rank(record, status) or end.problem)
        elif end is not None and end.status == "stopped" and record.stage == stages.TRAIN:
            self._finish(record, "stopped", by_signal=not record.stop_requested)
        elif succeeded:
            self.start_next_stage(record)
        elif record.stop_requested:
            self._finish(record, "stopped")
        elif status is None and not self._read_exhausted(record):
            record.move(
                "lost",
                code="run.lost",
                reason=(
                    "its worker has ended without a result; an earlier engine had started it, "
                    "so its exit status is unknown"
                ),
            )
        else:
            self._fail(record, None if status is None else self._report_crash(record, status))

    def _explain_end(self, record: Record, leader: Leader) -> Problem | None:
        """What is known of the end besides the worker's own word, and explains it better: from Slurm, or from the
        process that watched over the hosts."""
        end = record.end
        lost = end is None or (end.problem is not None and end.problem.code == "training.failed")
        if not isinstance(leader, SlurmJob):
            if record.stage != stages.TRAIN or not (lost or (end is not None and end.status == "stopped")):
                return None
            ended = read_problem(ended_file(record.directory.control, record.run.attempt))
            # That a rank has failed rank 0 says better, unless it has only lost another, or was ended because of that.
            return ended if ended is None or end is None or ended.code in CAUSES_OF_LOSS else None
        if record.run.state == states.QUEUED and leader.failure is None:  # it began and ended between two looks
            record.move("start")
        return leader.explain_end() if lost or record.stage in stages.AFTER else None

    def _settle_ended_job(self, record: Record, leader: Leader, ended: Problem) -> None:
        """Slurm has ended the run's job, and the worker had no time to say so."""
        if isinstance(leader, SlurmJob) and leader.state == "CANCELLED":
            record.move("stop")
            record.move("stopped", reason=f"{ended.title}: it had no time to save", code=ended.code)
        else:
            self._fail(record, ended)

    def _fail(self, record: Record, problem: Problem | None) -> None:
        """Fail the run, or queue its next attempt where `launch.restarts` allows one. Attempts are counted, so that a
        restart of the engine forgets none."""
        if note := self._read_exhausted(record):
            problem = note
        record.move("failed", problem=problem)
        if note and not record.stop_requested:
            record.resume_step = None
            self.queue.enqueue(record, "resume")
            return
        if (
            problem is not None
            and problem.code == "data.cache_damaged"
            and not (record.remade or record.stop_requested)
        ):
            record.remade = True  # once: the damaged rows are made again, and the run goes on where it was to
            self.queue.enqueue(record, "resume")
            return
        record.resume_step = (
            None  # a restart goes on from the newest checkpoint, whatever step the attempt was resumed from
        )
        if not record.stop_requested and self._count_failures(record) <= self._allowed_restarts(record):
            self.queue.enqueue(record, "resume")

    def _count_failures(self, record: Record) -> int:
        """The attempts so far, without those that ended for lack of memory and asked for another one."""
        attempts: Collection[int] = range(1, record.run.attempt + 1)
        if self.runs.is_elsewhere(record):  # those that Slurm has begun by itself are no failures
            entries = (entry for entry, _ in journal.read(record.directory.lifecycle))
            attempts = {entry.attempt for entry in entries if isinstance(entry, journal.Launched)}
        return sum(not record.directory.exhausted(attempt).exists() for attempt in attempts)

    def _read_exhausted(self, record: Record) -> Problem | None:
        """What a rank says that ran out of memory in this attempt, and that the next one can avoid."""
        try:
            note = json.loads(record.directory.exhausted(record.run.attempt).read_bytes())
            cause = f"rank {note['rank']}: {note['cause']}"
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Problem(
            code="memory.exhausted",
            title="Out of memory",
            cause=cause,
            hint="nothing to do: the next attempt has smaller micro-batches",
        )

    def _allowed_restarts(self, record: Record) -> int:
        try:
            return self.runs.load_profile(record).launch.restarts
        except (ProfileError, OSError):
            return 0

    def _finish(self, record: Record, event: str, *, by_signal: bool = False) -> None:
        if event == "stopped" and record.run.state != states.STOPPING:
            record.move("stop")
        if by_signal:
            reason = f"its worker got SIGTERM and ended at step {record.run.step}"
            record.move(event, reason=reason, code="run.terminated")
        else:
            record.move(event)

    def _name_killed_rank(self, record: Record, status: int | None) -> Problem | None:
        """The problem of a rank that a signal has ended, where rank 0 could only report that it has lost it."""
        end = record.end
        if status is None or end is None or end.problem is None or end.problem.code != "training.failed":
            return None
        log = read_log_tail(record.directory.log, begin=record.log_begin)
        return self._report_crash(record, status) if find_killed_rank(log) else None

    def _has_succeeded(self, record: Record, status: int | None) -> bool:
        """Whether the stage has its result. Training journals its end, so its exit status does not count: it may be
        killed after that."""
        result = record.directory.result(record.stage)
        if record.stage == stages.TRAIN:
            return record.end is not None and record.end.status == "completed" and result.is_file()
        return status in (0, None) and result.is_file()

    def start_next_stage(self, record: Record) -> None:
        following = self.queue.find_next_stage(record)
        if following is None:
            self._finish(record, "done")
        elif record.stop_requested:
            self._finish(record, "stopped")
        else:
            self.queue.advance(record, following)

    def _report_crash(self, record: Record, status: int) -> Problem:
        oom_killed = processes.count_oom_kills() > record.oom_kills
        log = read_log_tail(record.directory.log, begin=record.log_begin)
        ended = WorkerExit(status, log, oom_killed, bool(record.directory.checkpoint_steps()))
        try:
            profile = self.runs.load_profile(record)
        except (ProfileError, OSError):
            profile = None
        return report_crash(ended, profile)

    def stop_now(self, record: Record) -> None:
        """Stop a run by signals, without an instruction to its worker; take a queued one out of the queue."""
        record.stop_requested = True
        job = record.leader
        if isinstance(job, SlurmJob):
            if record.run.state != states.STOPPING:
                record.move("stop")
            self.queue.launcher.slurm.cancel(job)
            return
        if record.run.state == states.QUEUED:
            self.queue.remove(record)
            record.move("stop")
            record.move("stopped")
            return
        if record.run.state != states.STOPPING:
            record.move("stop")
        self.run_in_background(lambda: self._end_processes(record), self.reap)

    def delete(self, record: Record) -> None:
        """Remove an ended run's directory. It is renamed first, so that no half-deleted run is ever seen. Raises
        ProblemError."""
        if record.run.state not in states.ENDED:
            raise ProblemError(
                Problem(
                    code="run.live",
                    title=f"{record.run.id} is {record.run.state}",
                    hint=f"cockpit stop {record.run.id}",
                )
            )
        record.close()
        renamed = record.directory.path.with_name(f".deleted-{record.run.id}")
        record.directory.path.rename(renamed)
        self.runs.forget(record)
        shutil.rmtree(renamed, ignore_errors=True)
        self.publish(RunRemoved(run=record.run.id))

    def publish_changed(self) -> list[Record]:
        """Publish the runs that have changed since the last call, and return their records."""
        records = [record for record in self.runs.records.values() if record.changed]
        for record in records:
            record.changed = False
            self.publish(RunChanged(run=record.run))
        return records

    def find_pids(self, record: Record) -> list[int]:
        """The process ids of the run's launcher and ranks."""
        found = processes.find_processes(record.run.id, self.runs.home.root) if record.leader else []
        return sorted(process.pid for process in found if psutil.pid_exists(process.pid))
