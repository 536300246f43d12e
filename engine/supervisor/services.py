"""Services: workers that answer requests rather than finish a job (chat, data …). They have no run directory and no
journal."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.protocol.environment import build_job_environment
from engine.protocol.file_channel import SupervisorFiles
from engine.protocol.home import Home
from engine.protocol.messages import (
    Body,
    CancelInstruction,
    Instruction,
    Joined,
    OpenService,
    Problem,
    ProblemError,
    Said,
    Service,
    ServiceChanged,
    ServiceEvent,
    Status,
)
from engine.supervisor import processes
from engine.supervisor.ahead import Ahead
from engine.supervisor.crash_report import WorkerExit, report_crash
from engine.supervisor.devices import Devices
from engine.supervisor.launchers.local import build_command
from engine.supervisor.processes import Leader
from engine.supervisor.run_record import read_log_tail
from engine.supervisor.slurm import Slurm, SlurmJob
from engine.supervisor.slurm_services import SlurmServices

KINDS = ("chat", "data", "evaluate", "export", "fit", "generate", "serve")
"""The modules of `engine.workers` that may be opened as a service."""
INDEPENDENT = ("serve",)
"""Kinds that go on when the client that opened them has left."""
SERVER_GRACE = 12.0
"""Seconds that a server gets to end: vLLM takes ten for its own processes."""
WITHOUT_DEVICES = ("data",)
"""Kinds that compute on no device."""
CLIENT_TIMEOUT = 10.0
"""Seconds that a client may be unreachable before the services that it opened are ended."""
REMEMBERED = 64
"""Services that ended by themselves whose reason is kept, for clients that ask them later."""
MOST_ENDED = 10
"""Services that died which are remembered."""
ADOPTED_TIMEOUT = 600.0
"""The same for a service of an earlier supervisor that no client has used since."""


@dataclass
class Worker:
    """A service and its process. `identity` is its address on the workers' socket; None until it has joined."""

    service: Service
    leader: Leader | None = None
    identity: bytes | None = None
    held_instructions: list[Instruction] | None = None
    oom_kills: int = 0
    client: bytes | None = None
    """The client that opened it or used it last; None for an earlier supervisor's service that no client has used
    yet."""
    stopping: bool = False
    """Whether it was asked to stop, so that its end is no news."""
    unreachable_since: float = 0.0
    """`time.monotonic()` since when that client cannot be reached; 0 while it can."""
    files: SupervisorFiles | None = None
    """How it is reached where it is a Slurm job."""
    told: dict[str, str] = field(default_factory=dict)
    """What was last said to each request about the job that it waits for."""


class Services:
    """`workers` is the package whose modules are started, `address` says where they connect to, and `devices` which
    devices they may use. `publish` and
    `instruct` are those of `RunMonitor`; `fail_requests` gets the id of a service that has ended, and the problem to
    reply with."""

    def __init__(
        self,
        home: Home,
        workers: str,
        address: Callable[[], str],
        devices: Devices,
        publish: Callable[[Body], None],
        instruct: Callable[[bytes, Instruction | CancelInstruction], None],
        fail_requests: Callable[[str, Problem], None],
        ahead: Ahead | None = None,
    ) -> None:
        self.home, self._package, self._address, self._devices = home, workers, address, devices
        self.publish, self.instruct, self.fail_requests = publish, instruct, fail_requests
        self._start = ahead.start if ahead else processes.start
        self.workers: dict[str, Worker] = {}
        self._reasons: dict[str, Problem] = {}
        """Why services ended that no client closed, the latest last."""
        self.ended: dict[str, Service] = {}
        """Independent services that died, until somebody closes them: nobody may have been there to be told."""
        self.slurm = Slurm()
        self.jobs = SlurmServices(home, workers, self.slurm)
        for service_id, job, files in self.jobs.adopt():
            service = Service(id=service_id, kind=service_id.partition("-")[0])
            self.workers[service_id] = Worker(service, job, files=files)

    def find(self, service_id: str) -> Worker:
        """Raises ProblemError when there is no such service; if it ended by itself, the problem says why."""
        worker = self.workers.get(service_id)
        if worker is None and service_id in self._reasons:
            raise ProblemError(self._reasons[service_id])
        if worker is None:
            raise ProblemError(
                Problem(
                    code="service.not_found",
                    title=f"There is no open service {service_id}",
                    cause="it has ended, or the engine was restarted",
                    hint="open it again",
                )
            )
        return worker

    def list_services(self) -> list[Service]:
        return [*(worker.service for worker in self.workers.values()), *self.ended.values()]

    def is_starting(self) -> bool:
        """Whether a worker of this host is starting: a Slurm job needs none of its memory."""
        return any(worker.identity is None and worker.files is None for worker in self.workers.values())

    def open(self, message: OpenService, client: bytes | None = None) -> Service:
        """Start a service for a client. Raises ProblemError for a kind that is no service, or when its process cannot
        be started."""
        if message.kind not in KINDS:
            raise ProblemError(
                Problem(
                    code="service.unknown_kind",
                    title=f"There is no service {message.kind!r}",
                    hint=f"there are: {', '.join(KINDS)}",
                )
            )
        service = Service(id=f"{message.kind}-{uuid.uuid4().hex[:8]}", kind=message.kind)
        if message.launch is not None:
            return self._submit(service, message, client)
        command = [
            f"{self._package}.{message.kind}",
            *("--home", str(self.home.root)),
            *("--job", service.id),
            *("--attempt", "1"),
            *("--address", self._address()),
            *("--options", json.dumps(message.options)),
        ]
        worker = Worker(service, held_instructions=[], oom_kills=processes.count_oom_kills(), client=client)
        try:
            worker.leader = self._start(
                build_command(command, 1, None),
                self._log_path(service.id),
                self._build_environment(message),
            )
        except OSError as error:
            raise ProblemError(
                Problem(code="worker.not_started", title="The worker could not be started", cause=str(error))
            )
        if message.kind not in INDEPENDENT:
            processes.prefer_for_oom_kill(worker.leader.pid)
        service.pid = worker.leader.pid
        self.workers[service.id] = worker
        self.publish(ServiceChanged(service=service))
        return service

    def _submit(self, service: Service, message: OpenService, client: bytes | None) -> Service:
        """Start a service as a Slurm job. Raises ProblemError."""
        try:
            job, files = self.jobs.submit(service.id, message, self._log_path(service.id))
        except OSError as error:
            raise ProblemError(
                Problem(code="worker.not_started", title="The job could not be written", cause=str(error))
            )
        service.detail = job.describe_wait()
        self.workers[service.id] = Worker(service, job, client=client, files=files)
        self.publish(ServiceChanged(service=service))
        return service

    def _build_environment(self, message: OpenService) -> dict[str, str]:
        """Raises ProblemError when the service would see none of the devices that it may use."""
        environment = build_job_environment(message.environment)
        return environment if message.kind in WITHOUT_DEVICES else self._devices.restrict(environment)

    def ask(self, service_id: str, instruction: Instruction, client: bytes | None = None) -> None:
        """Forward a client's request, or hold it until the worker has joined. Raises ProblemError."""
        worker = self.find(service_id)
        worker.client, worker.unreachable_since = client, 0.0
        worker.stopping = worker.stopping or instruction.name == "stop"
        if worker.files is not None:
            worker.files.send(instruction)
        elif worker.identity is not None:
            self.instruct(worker.identity, instruction)
        elif worker.held_instructions is not None:
            worker.held_instructions.append(instruction)

    def cancel(self, service_id: str, request: str) -> None:
        """Raises ProblemError."""
        worker = self.find(service_id)
        if worker.files is not None:
            worker.files.send(CancelInstruction(request=request))
        elif worker.identity is not None:
            self.instruct(worker.identity, CancelInstruction(request=request))

    def close(self, service_id: str) -> None:
        """End the worker, or forget one that died; raises ProblemError."""
        if service_id in self.ended:
            service = self.ended.pop(service_id)
            service.problem = None
            self.publish(ServiceChanged(service=service))
            return
        if service_id in self._reasons:
            return
        worker = self.find(service_id)
        if isinstance(worker.leader, SlurmJob):
            self.jobs.close(service_id, worker.leader)
        elif worker.service.kind in INDEPENDENT:
            # Its worker may have to end another program's server first; the engine waits for that before it ends.
            threading.Thread(target=self._end_server, args=(worker,), name=f"end of {service_id}").start()
        else:
            processes.end_processes(processes.find_processes(service_id, self.home.root, worker.leader))
        self._remove(worker, None)

    def _end_server(self, worker: Worker) -> None:
        """End a server's worker, then what is left of the processes that it had started."""
        own = processes.find_processes(worker.service.id, self.home.root, worker.leader)
        processes.end_processes(own, SERVER_GRACE)
        if worker.leader is not None:
            processes.end_processes(processes.find_session(worker.leader))

    def register(self, joined: Joined, identity: bytes) -> None:
        """A worker has connected. One that an earlier supervisor started is adopted."""
        service_id, pid = joined.job, joined.pid
        worker = self.workers.get(service_id)
        if worker is None:
            worker = Worker(
                Service(id=service_id, kind=service_id.partition("-")[0], pid=pid, state="ready"),
                Leader.adopt(service_id, pid, joined.start_time, joined.identity)
                or Leader(pid, joined.start_time, joined.identity),
            )
            self.workers[service_id] = worker
            self.publish(ServiceChanged(service=worker.service))
        worker.identity = identity
        for instruction in worker.held_instructions or []:
            self.instruct(identity, instruction)
        worker.held_instructions = None

    def forward_event(self, service_id: str, message: Said) -> None:
        self.publish(ServiceEvent(service=service_id, request=message.request, kind=message.kind, data=message.data))

    def update_status(self, service_id: str, status: Status) -> None:
        service = self.find(service_id).service
        service.state, service.target = status.state, status.target
        service.device, service.detail, service.address = status.device, status.detail, status.address
        service.figures = status.figures
        self.publish(ServiceChanged(service=service))

    def reap(self) -> None:
        """Notice services whose process has ended."""
        for worker in list(self.workers.values()):
            if worker.leader is not None and worker.leader.has_ended():
                if worker.service.kind in INDEPENDENT and (left := processes.find_session(worker.leader)):
                    threading.Thread(target=processes.end_processes, args=(left, SERVER_GRACE)).start()
                problem = self._describe_end(worker)
                if isinstance(worker.leader, SlurmJob):
                    self.jobs.remove(worker.service.id)
                self._reasons[worker.service.id] = problem or _report_end(worker.service)
                for old in list(self._reasons)[:-REMEMBERED]:
                    del self._reasons[old]
                self._remove(worker, problem)

    def _describe_end(self, worker: Worker) -> Problem | None:
        """The problem of a service whose process has ended; None when it was to end."""
        assert worker.leader is not None
        log, status = self._log_path(worker.service.id), worker.leader.status
        again = _suggest_again(worker.service, log)
        if isinstance(worker.leader, SlurmJob) and (found := worker.leader.explain_end()):
            return msgspec.structs.replace(found, hint=f"correct what Slurm is asked for, or {again}")
        if status:
            oom = processes.count_oom_kills() > worker.oom_kills
            return report_crash(WorkerExit(status, read_log_tail(log), oom), None, again)
        if status is None and worker.service.kind in INDEPENDENT and not worker.stopping:
            cause = "how is not known: an earlier engine had started it"
            return Problem(code="service.ended", title="The server has ended", cause=cause, hint=again)
        return None

    def close_abandoned(self, is_reachable: Callable[[bytes], bool]) -> None:
        """End the services whose client has left without closing them, as a killed client does."""
        now = time.monotonic()
        for worker in list(self.workers.values()):
            if worker.service.kind in INDEPENDENT:
                continue
            if worker.client is not None and is_reachable(worker.client):
                worker.unreachable_since = 0.0
                continue
            worker.unreachable_since = worker.unreachable_since or now
            if now - worker.unreachable_since > (CLIENT_TIMEOUT if worker.client is not None else ADOPTED_TIMEOUT):
                self.close(worker.service.id)

    def _remove(self, worker: Worker, problem: Problem | None) -> None:
        del self.workers[worker.service.id]
        worker.service.state, worker.service.problem = "ended", problem
        if problem and worker.service.kind in INDEPENDENT:
            self.ended[worker.service.id] = worker.service
            while len(self.ended) > MOST_ENDED:
                del self.ended[next(iter(self.ended))]
        self.publish(ServiceChanged(service=worker.service))
        self.fail_requests(
            worker.service.id,
            problem or _report_end(worker.service),
        )

    def _log_path(self, service_id: str) -> Path:
        return self.home.engine / "services" / f"{service_id}.log"


def _report_end(service: Service) -> Problem:
    return Problem(code="service.ended", title=f"The {service.kind} worker has ended", hint="open it again")


def _suggest_again(service: Service, log: Path) -> str:
    if service.kind == "serve":
        return f"start it again with: cockpit serve {service.target or 'TARGET'}; its log is {log}"
    return f"ask again: it is started anew; its log is {log}"
