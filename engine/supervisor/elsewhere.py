"""Follows runs that no socket reaches: by the files beside their journals, and by what Slurm says of their jobs."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.protocol import journal, states
from engine.protocol.file_channel import Beat, SupervisorFiles
from engine.protocol.messages import Answered, FromWorker, Problem, Said
from engine.supervisor.hang_detector import Heartbeats
from engine.supervisor.pending import PendingRequests
from engine.supervisor.run_monitor import RunMonitor
from engine.supervisor.run_record import Record
from engine.supervisor.runs import Runs
from engine.supervisor.service_jobs import ServiceJobs
from engine.supervisor.services import Services
from engine.supervisor.slurm import COMPLETING, SlurmJob


class Elsewhere:
    """`answer` takes a worker's answer."""

    def __init__(
        self,
        runs: Runs,
        monitor: RunMonitor,
        services: Services,
        pending: PendingRequests,
        answer: Callable[[Answered], None],
    ) -> None:
        self.runs, self.monitor, self.services, self.pending = runs, monitor, services, pending
        self.answer, self.slurm = answer, monitor.queue.launcher.slurm
        self.jobs = ServiceJobs(services, monitor.run_in_background, answer)

    def poll(self) -> None:
        """Read what is new."""
        self.slurm.refresh()
        self.jobs.poll()
        for record in self.runs.list_live():
            with record.isolate():
                if isinstance(record.leader, SlurmJob):
                    self._follow(record, record.leader)
                if record.files is not None and record.leader is not None:
                    self._read(record, record.files)

    def _read(self, record: Record, files: SupervisorFiles) -> None:
        """Read a run's files in a thread: a file system of other hosts may not answer for a while."""
        if files.reading:
            return
        files.reading = True
        ranks = max(1, record.run.processes)
        found: list[tuple[Problem | None, list[Beat], list[FromWorker]]] = []

        def take() -> None:
            files.reading = False
            if found and record.files is files:
                with record.isolate():
                    self._take(record, *found[0])

        self.monitor.run_in_background(lambda: found.append((files.take_notice(), *files.poll(ranks))), take)

    def _take(self, record: Record, notice: Problem | None, beats: list[Beat], replies: list[FromWorker]) -> None:
        if notice:
            self.monitor.warn(record, notice.code, f"{notice.title}: {notice.cause}", notice.hint)
        for beat in beats:
            if not beat.ended:
                self.monitor.take_heartbeat(record, beat.rank)
        for reply in replies:
            if isinstance(reply, Answered):
                self.answer(reply)
            elif isinstance(reply, Said):
                self.services.forward_event(record.run.id, reply)

    def _follow(self, record: Record, job: SlurmJob) -> None:
        run = record.run
        if job.job and not job.recorded:
            job.recorded = True
            record.write_lifecycle(
                journal.Launched(
                    attempt=job.attempt,
                    pid=0,
                    start_time=0.0,
                    slurm=job.job,
                    slurm_name=job.name,
                    slurm_conf=job.conf,
                    stage=record.stage,
                )
            )
        job.restarts = max(job.restarts, run.attempt - job.attempt)  # its journal may be ahead of squeue
        if record.files is not None and job.attempt + job.restarts > record.files.attempt:
            self._begin_again(record, job)
        if job.ended:
            return
        if record.end is not None or record.directory.result(record.stage).is_file():
            self.slurm.hurry()
        if job.state == COMPLETING:  # to an end, or to wait again
            return
        if job.job and not job.state:  # Slurm has not been asked yet
            return
        if not job.waits:
            if run.phase and run.phase == job.shown:
                run.phase, record.changed = "", True
            if run.state == states.QUEUED:
                run.started = time.time()
                record.move("start")
        elif run.state == states.QUEUED:
            if job.shown != (words := f"waits: {job.describe_wait()}"):
                job.shown = run.reason = words
                run.code, record.changed = "queue.slurm", True
        elif run.state == states.RUNNING:  # a later stage of the run, in a job of its own
            run.phase = job.shown = job.describe_wait()
            record.changed = True

    def _begin_again(self, record: Record, job: SlurmJob) -> None:
        """Slurm has queued the job again: after its time limit, for another job, or because a node failed."""
        run = record.run
        while self.monitor.read_journal(record):
            pass
        again = Problem(
            code="run.not_live", title=f"{run.id} was queued again by Slurm", hint="ask again when it is running"
        )
        self.pending.fail(run.id, again)
        run.attempt, job.shown = job.attempt + job.restarts, ""
        record.end = record.end if record.end is not None and record.end.attempt == run.attempt else None
        record.ranks, record.heartbeats = {}, Heartbeats()
        record.files = SupervisorFiles(record.directory.control, run.attempt, fresh=True)
        if record.stop_requested:
            self.slurm.cancel(job)
        elif run.state in states.STARTED:
            record.move("requeue", reason="Slurm has queued it again", code="slurm.requeued")
