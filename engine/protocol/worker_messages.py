"""Messages between the supervisor and its workers."""

from __future__ import annotations

from typing import Any

from engine.protocol.description import Rank
from engine.protocol.envelope import Message
from engine.protocol.problem import Problem


class Joined(Message, tag="joined", kw_only=True):
    """The first message of a worker on each connection. `job` is a run id or a service id."""

    job: str
    attempt: int
    rank: int
    pid: int
    start_time: float
    """The process's start time in seconds since the epoch."""
    identity: str = ""
    """The boot id and the clock ticks since then at which the process was started, `BOOT/TICKS`: with the pid it
    identifies the process, whatever the clock does. Empty where there is no /proc, and from older versions."""


class Written(Message, tag="written", kw_only=True):
    """The journal is now `size` bytes long. The supervisor reads the content from the file."""

    job: str
    size: int


class Heartbeat(Message, tag="heartbeat", kw_only=True):
    """A rank's state, sent once a second and at each new phase."""

    job: str
    rank: Rank


class Answered(Message, tag="answered", kw_only=True):
    """The answer to the instruction with this `id`: the step at which it was taken, and its result or a problem."""

    id: str
    step: int = 0
    result: Any = None
    problem: Problem | None = None


class Said(Message, tag="said", kw_only=True):
    """An event of a service worker while it answers `request`; published as `service_event`."""

    request: str
    kind: str
    data: dict[str, Any] = {}


class Status(Message, tag="status", kw_only=True):
    """The new state of a service worker; see `Service`."""

    state: str
    target: str = ""
    device: str = ""
    detail: str = ""
    address: str = ""
    figures: dict[str, float] = {}


FromWorker = Joined | Written | Heartbeat | Answered | Said | Status


class Instruction(Message, tag="instruction", kw_only=True):
    """A command to rank 0 of a run (`stop`, `pause`, `continue`, `save`, `evaluate`, `set`, `generate`, `stacks`), or a
    request to a service. The answer has the same `id`."""

    id: str
    name: str
    arguments: dict[str, Any] = {}


class CancelInstruction(Message, tag="cancel", kw_only=True):
    """Cancel the request with this id."""

    request: str


ToWorker = Instruction | CancelInstruction
