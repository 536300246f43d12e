"""Workers that answer questions rather than finish a job: chat, data. They have no run directory and no journal."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.protocol.home import Home
from engine.protocol.messages import (
    Body,
    CancelInstruction,
    Instruction,
    OpenService,
    Problem,
    ProblemError,
    Said,
    Service,
    ServiceChanged,
    ServiceEvent,
    Status,
)
from engine.protocol.wire import workers_address
from engine.supervisor import processes
from engine.supervisor.crash_report import Death, explain
from engine.supervisor.launchers.local import command
from engine.supervisor.processes import Leader
from engine.supervisor.run_record import log_tail

KINDS = ("chat", "data", "evaluate", "export", "generate", "serve")
"""Which of `engine.workers` may be opened as a service."""


LASTING = ("serve",)
"""Kinds that go on without whoever opened them."""
GONE = 10.0
"""Seconds that a client may be away before what it opened is ended."""
UNASKED = 600.0
"""The same for a service of an earlier supervisor, which nobody has asked since."""


@dataclass
class Warm:
    """A service and its process. `identity` is its address on the workers' socket, once it has joined."""

    service: Service
    leader: Leader | None = None
    identity: bytes | None = None
    held: list[Instruction] | None = None
    oom_kills: int = 0
    client: bytes | None = None
    """Who opened it, or asked it last; None for one that an earlier supervisor started, until somebody asks."""
    missed: float = 0.0
    """Since when that client cannot be reached, as `monotonic` tells; 0 while it can."""


class Services:
    """`publish` and `instruct` as for `Watch`; `broken` is told the service whose questions will not be answered any more."""

    def __init__(
        self,
        home: Home,
        workers: str,
        publish: Callable[[Body], None],
        instruct: Callable[[bytes, Instruction | CancelInstruction], None],
        broken: Callable[[str, Problem], None],
    ) -> None:
        self.home, self.workers = home, workers
        self.publish, self.instruct, self.broken = publish, instruct, broken
        self.warm: dict[str, Warm] = {}

    def find(self, service_id: str) -> Warm:
        """Raises ProblemError for one that is not open."""
        warm = self.warm.get(service_id)
        if warm is None:
            raise ProblemError(
                Problem(
                    code="service.not_found",
                    title=f"There is no open service {service_id}",
                    cause="it has ended, or the engine was restarted",
                    hint="open it again",
                )
            )
        return warm

    def listed(self) -> list[Service]:
        return [warm.service for warm in self.warm.values()]

    def open(self, message: OpenService, client: bytes | None = None) -> Service:
        """Start a worker for a client. Raises ProblemError for a kind that is no service, or when it does not start."""
        if message.kind not in KINDS:
            raise ProblemError(
                Problem(
                    code="service.unknown_kind",
                    title=f"There is no service {message.kind!r}",
                    hint=f"there are: {', '.join(KINDS)}",
                )
            )
        service = Service(id=f"{message.kind}-{uuid.uuid4().hex[:8]}", kind=message.kind)
        worker = [
            f"{self.workers}.{message.kind}",
            *("--home", str(self.home.root)),
            *("--job", service.id),
            *("--attempt", "1"),
            *("--address", workers_address(self.home)),
            *("--options", json.dumps(message.options)),
        ]
        warm = Warm(service, held=[], oom_kills=processes.oom_kills(), client=client)
        try:
            warm.leader = processes.start(command(worker, 1, None), self._log(service.id), message.environment)
        except OSError as error:
            raise ProblemError(
                Problem(code="worker.not_started", title="The worker could not be started", cause=str(error))
            )
        if message.kind not in LASTING:
            processes.first_to_go(warm.leader.pid)
        service.pid = warm.leader.pid
        self.warm[service.id] = warm
        self.publish(ServiceChanged(service=service))
        return service

    def ask(self, service_id: str, instruction: Instruction, client: bytes | None = None) -> None:
        """Forward a client's question, or hold it until the worker has joined. Raises ProblemError."""
        warm = self.find(service_id)
        warm.client, warm.missed = client, 0.0
        if warm.identity is not None:
            self.instruct(warm.identity, instruction)
        elif warm.held is not None:
            warm.held.append(instruction)

    def cancel(self, service_id: str, request: str) -> None:
        """Raises ProblemError."""
        warm = self.find(service_id)
        if warm.identity is not None:
            self.instruct(warm.identity, CancelInstruction(request=request))

    def close(self, service_id: str) -> None:
        """End the worker; raises ProblemError."""
        warm = self.find(service_id)
        processes.end(processes.of_job(service_id, self.home.root))
        self._forget(warm, None)

    def joined(self, service_id: str, pid: int, start_time: float, identity: bytes) -> None:
        """A worker said hello. One that an earlier supervisor started is taken on as it is."""
        warm = self.warm.get(service_id)
        if warm is None:
            warm = Warm(
                Service(id=service_id, kind=service_id.partition("-")[0], pid=pid, state="ready"),
                Leader(pid, start_time),
            )
            self.warm[service_id] = warm
            self.publish(ServiceChanged(service=warm.service))
        warm.identity = identity
        for instruction in warm.held or []:
            self.instruct(identity, instruction)
        warm.held = None

    def said(self, service_id: str, message: Said) -> None:
        self.publish(ServiceEvent(service=service_id, request=message.request, kind=message.kind, data=message.data))

    def reported(self, service_id: str, status: Status) -> None:
        service = self.find(service_id).service
        service.state, service.target = status.state, status.target
        service.device, service.detail, service.address = status.device, status.detail, status.address
        service.figures = status.figures
        self.publish(ServiceChanged(service=service))

    def reap(self) -> None:
        """Notice services that have ended by themselves."""
        for warm in list(self.warm.values()):
            if warm.leader is not None and warm.leader.ended():
                status = warm.leader.status
                problem = None
                if status:
                    oom = processes.oom_kills() > warm.oom_kills
                    problem = explain(Death(status, log_tail(self._log(warm.service.id)), oom), None)
                self._forget(warm, problem)

    def end_left(self, reachable: Callable[[bytes], bool]) -> None:
        """End what nobody will ask any more: its client is gone without having closed it, as one that was killed is."""
        now = time.monotonic()
        for warm in list(self.warm.values()):
            if warm.service.kind in LASTING:
                continue
            if warm.client is not None and reachable(warm.client):
                warm.missed = 0.0
                continue
            warm.missed = warm.missed or now
            if now - warm.missed > (GONE if warm.client is not None else UNASKED):
                self.close(warm.service.id)

    def _forget(self, warm: Warm, problem: Problem | None) -> None:
        del self.warm[warm.service.id]
        warm.service.state, warm.service.problem = "ended", problem
        self.publish(ServiceChanged(service=warm.service))
        self.broken(
            warm.service.id, problem or Problem(code="service.ended", title=f"The {warm.service.kind} worker has ended")
        )

    def _log(self, service_id: str) -> Path:
        return self.home.engine / "services" / f"{service_id}.log"
