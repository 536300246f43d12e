"""Follows services that are Slurm jobs: what they wait for, and what they answer by files."""

from __future__ import annotations

from collections.abc import Callable

from engine.protocol.messages import Answered, FromWorker, Said, ServiceChanged, Status
from engine.supervisor.services import Services, Worker
from engine.supervisor.slurm import SlurmJob

Background = Callable[[Callable[[], None], Callable[[], None]], None]


class ServiceJobs:
    """`answer` takes a worker's answer; `run_in_background` is the server's."""

    def __init__(self, services: Services, run_in_background: Background, answer: Callable[[Answered], None]) -> None:
        self._services, self._run, self._answer = services, run_in_background, answer

    def poll(self) -> None:
        """Read what is new."""
        for worker in list(self._services.workers.values()):
            if isinstance(worker.leader, SlurmJob):
                self._services.jobs.note(worker.service.id, worker.leader)
                self._tell(worker, worker.leader)
                self._read(worker)
        self._services.jobs.clear()

    def _tell(self, worker: Worker, job: SlurmJob) -> None:
        """Say what the job waits for, to whoever looks at the service and to whoever has asked it something."""
        service, files = worker.service, worker.files
        if service.state != "starting" or files is None:
            return
        words = job.describe_wait() if job.waits else f"Slurm job {job.job} is starting"
        if job.shown != words:
            job.shown = service.detail = words
            self._services.publish(ServiceChanged(service=service))
        for request in files.list_requests():
            if worker.told.get(request) != words:
                worker.told[request] = words
                self._services.forward_event(service.id, Said(request=request, kind="progress", data={"stage": words}))

    def _read(self, worker: Worker) -> None:
        """Read the files in a thread: a file system of other hosts may not answer for a while."""
        files = worker.files
        if files is None or files.reading:
            return
        files.reading = True
        found: list[FromWorker] = []

        def look() -> None:
            files.keep_lease()
            found.extend(files.poll(1)[1])

        def take() -> None:
            files.reading = False
            for reply in found:
                if isinstance(reply, Answered):
                    self._answer(reply)
                elif worker.service.id not in self._services.workers:
                    continue
                elif isinstance(reply, Said):
                    self._services.forward_event(worker.service.id, reply)
                elif isinstance(reply, Status):
                    self._services.update_status(worker.service.id, reply)

        self._run(look, take)
