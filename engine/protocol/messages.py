"""What the cockpit, the supervisor and the workers say to each other. Typed, versioned, no behaviour.

Requests travel in an envelope with an id and the protocol's version; the reply carries the same id and a result or a
`Problem`. Unknown fields are ignored, unknown operations are answered with a problem. `OPERATIONS` is the whole table.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.protocol.codes import UNKNOWN

PROTOCOL = 1


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error as data: what went wrong, why, and what mends it."""

    code: str = UNKNOWN
    """One of `codes.CODES`; what code compares. The default is for what an older peer sends: every `Problem` that is made
    here names its own (a test reads the source)."""
    title: str
    cause: str = ""
    hint: str = ""
    place: str = ""
    """File, line and column that it is about, where there is such a place."""
    traceback: str = ""

    def __str__(self) -> str:
        return "\n".join(part for part in (self.title, self.cause, self.hint and f"→ {self.hint}") if part)

    def document(self) -> dict[str, str]:
        """What `--json` prints of it under `error`."""
        return {"code": self.code, "title": self.title, "cause": self.cause, "hint": self.hint, "place": self.place}


class ProblemError(Exception):
    """A `Problem` on its way through Python code."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of everything below."""


# ── envelopes ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Request(Message, kw_only=True):
    id: str
    operation: str
    protocol: int = PROTOCOL
    body: msgspec.Raw = msgspec.Raw(b"\x80")  # an empty msgpack map


class Reply(Message, kw_only=True):
    id: str
    protocol: int = PROTOCOL
    result: msgspec.Raw = msgspec.Raw(b"\x80")
    problem: Problem | None = None


class Event(Message, kw_only=True):
    """One published event. `seq` counts within `session`; a jump means that this client missed something."""

    session: str
    seq: int
    time: float
    body: msgspec.Raw


# ── what is told about runs, devices, services ─────────────────────────────────────────────────────────────────────


class Rank(Message, kw_only=True):
    """One rank's last sign of life. Memory in bytes; `device_*` is what the worker's allocator says, 0 without a device."""

    rank: int
    pid: int
    phase: str = ""
    step: int = 0
    time: float = 0.0
    resident: int = 0
    device_used: int = 0
    device_reserved: int = 0
    device_peak: int = 0
    waiting: bool = False
    """It waits for the other ranks: if nothing goes on, it is not to blame."""


class Run(Message, kw_only=True):
    """A run in one line: enough for a list, a header and a progress bar."""

    id: str
    kind: str = "train"
    name: str = ""
    state: str = "queued"
    reason: str = ""
    """Why it is paused or lost, in words; empty otherwise."""
    code: str = ""
    """The same as one of `codes.CODES`."""
    host: str = ""
    directory: str = ""
    profile: str = ""
    base: str = ""
    method: str = ""
    adapter: str = ""
    attempt: int = 0
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    epochs: float = 0.0
    created: float = 0.0
    started: float = 0.0
    """When the present attempt began; 0 before."""
    ended: float = 0.0
    position: int = 0
    """Place in the queue, from 1; 0 when not queued."""
    devices: list[int] = []
    processes: int = 1
    phase: str = ""
    stage: str = ""
    """The stage that it is in, or has ended in: `prepare`, `train`, `evaluate`, `export`."""
    stages: list[str] = []
    """All that the profile asks for, in their order (`protocol.stages`)."""
    global_batch: int = 0
    parameters: int = 0
    trainable_parameters: int = 0
    metrics: dict[str, float] = {}
    """The newest value of each metric."""
    problem: Problem | None = None


class CheckpointInfo(Message, kw_only=True):
    step: int
    path: str
    metrics: dict[str, float] = {}
    best: bool = False


class LedgerLine(Message, kw_only=True):
    step: int
    name: str
    old: Any = None
    new: Any = None
    time: float = 0.0
    code: str = ""


class RunDetail(Message, kw_only=True):
    """All that `show` says of one run."""

    run: Run
    profile_text: str = ""
    checkpoints: list[CheckpointInfo] = []
    pids: list[int] = []
    ranks: list[Rank] = []
    ledger: list[LedgerLine] = []
    warnings: list[str] = []
    told: list[dict[str, Any]] = []
    """The newest journal entries but metrics, oldest first, as JSON objects: what `Told` would have said."""
    facts: dict[str, Any] = {}


class DeviceProcess(Message, kw_only=True):
    pid: int
    user: str = ""
    name: str = ""
    memory: int = 0


class Device(Message, kw_only=True):
    """One accelerator. Memory in bytes, utilisation in percent, temperature in °C, power in watts; None where not told."""

    index: int
    name: str
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    processes: list[DeviceProcess] = []


class Host(Message, kw_only=True):
    """The machine. Rates are bytes a second since the sample before."""

    name: str = ""
    cpu_percent: float = 0.0
    cpu_count: int = 0
    per_cpu: list[float] = []
    load: list[float] = []
    memory_used: int = 0
    memory_total: int = 0
    disk_free: int = 0
    disk_total: int = 0
    disk_read: float = 0.0
    disk_write: float = 0.0
    network_in: float = 0.0
    network_out: float = 0.0
    temperature: float | None = None


class Telemetry(Message, tag="telemetry", kw_only=True):
    """Published once a second; `backend` is `nvidia`, `cpu`, or the accelerator's name."""

    time: float
    host: Host
    devices: list[Device] = []
    backend: str = "cpu"
    visible: str = ""
    """An inherited visibility mask, as text; empty when there is none."""
    note: str = ""
    """Why there are no device figures, when that is worth saying (driver missing, NVML failed)."""


class Service(Message, kw_only=True):
    """A worker that answers questions rather than finishing a job: `chat`, `data`, `serve`."""

    id: str
    kind: str
    state: str = "starting"  # starting · ready · busy · ended
    pid: int = 0
    target: str = ""
    device: str = ""
    detail: str = ""
    address: str = ""
    """Where a server listens, as a URL; empty for every other kind, and until it does."""
    figures: dict[str, float] = {}
    """What it counts, if it counts: a server's requests and tokens."""
    problem: Problem | None = None


# ── requests and their replies ─────────────────────────────────────────────────────────────────────────────────────


class Nothing(Message, kw_only=True):
    """An empty request or reply."""


class Welcome(Message, kw_only=True):
    session: str
    pid: int
    protocol: int
    home: str
    host: str
    started: float
    jobs: list[str] = []
    """Ids of live runs."""
    services: list[Service] = []


class Snapshot(Message, kw_only=True):
    """The state at `seq`: everything published after it follows."""

    session: str
    seq: int
    runs: list[Run]
    services: list[Service] = []
    telemetry: Telemetry | None = None


class Submit(Message, kw_only=True):
    """Queue a run. `profile` is the resolved profile as YAML text; `environment` holds values that are never written."""

    profile: str
    kind: str = "train"  # train · prepare
    source: str = ""
    """Where the profile came from, as shown to the user."""
    directory: str = ""
    """The working directory that relative sources are meant from."""
    environment: dict[str, str] = {}
    output: str = ""
    first: str = ""
    """Begin with this stage; what lies before is taken from the newest run of the same profile."""


class RunRef(Message, kw_only=True):
    run: str
    """An id, an unambiguous prefix, or `last`."""


class ListRuns(Message, kw_only=True):
    state: str = ""


class RunList(Message, kw_only=True):
    runs: list[Run]


class Stop(RunRef, kw_only=True):
    now: bool = False


class Command(RunRef, kw_only=True):
    """`pause`, `save`, `evaluate`, `stacks` of a running worker."""


class Continue(RunRef, kw_only=True):
    """A paused run goes on. When a bad batch is held back, `choice` says what becomes of it: `skip` its rows, `rollback` to the
    checkpoint before and skip them; empty: on with it where it can be."""

    choice: str = ""


class Set(RunRef, kw_only=True):
    changes: dict[str, Any]


class Taken(Message, kw_only=True):
    """A command's answer: the run, its state after, and the step at which it was taken."""

    run: str
    state: str
    step: int


class Resume(RunRef, kw_only=True):
    step: int | None = None
    changes: dict[str, Any] = {}
    environment: dict[str, str] = {}


class Reorder(RunRef, kw_only=True):
    position: int


class SeriesQuery(RunRef, kw_only=True):
    """At most `points` buckets a name, between two steps (inclusive; None: from the start, to the end)."""

    names: list[str]
    points: int = 400
    first: int | None = None
    last: int | None = None


class Series(Message, kw_only=True):
    """Buckets in ascending steps, as parallel lists of equal length."""

    name: str
    first_step: list[int]
    last_step: list[int]
    low: list[float]
    high: list[float]
    last: list[float]
    total: int = 0
    """Points in the asked range before reduction."""


class SeriesReply(Message, kw_only=True):
    run: str
    series: list[Series]


class LogQuery(RunRef, kw_only=True):
    """`offset` None: the last `limit` bytes; else from there on."""

    offset: int | None = None
    limit: int = 65536


class LogReply(Message, kw_only=True):
    text: str
    offset: int


class TelemetryQuery(Message, kw_only=True):
    seconds: float = 600.0


class TelemetryHistory(Message, kw_only=True):
    samples: list[Telemetry]


class Shutdown(Message, kw_only=True):
    force: bool = False


class OpenService(Message, kw_only=True):
    """Start a worker of `engine.workers.<kind>` that answers questions."""

    kind: str
    options: dict[str, Any] = {}
    environment: dict[str, str] = {}


class ServiceRef(Message, kw_only=True):
    service: str


class Ask(ServiceRef, kw_only=True):
    """Forwarded to the service's worker. `request` names the question in events and for `cancel`; answered when the worker has
    answered; what it says meanwhile is published as `ServiceEvent`."""

    request: str
    question: str
    arguments: dict[str, Any] = {}


class Answer(Message, kw_only=True):
    result: Any = None


class Cancel(ServiceRef, kw_only=True):
    request: str


class Judgement(Message, kw_only=True):
    """What somebody thought of replies: a vote between two whose names were hidden, or a rating of one. Kept with the runs it is about."""

    targets: list[str]
    """A vote's two, as they stood from left to right; a rating's one. As workers label them: `run@step`, or a model's name."""
    prompt: str
    replies: list[str]
    """In the order of `targets`."""
    vote: str = ""
    """`left`, `right`, `tie` or `both bad`; empty for a rating."""
    rating: int = 0
    """1 to 5; 0 for a vote."""
    settings: dict[str, Any] = {}
    """How the replies were sampled."""
    id: str = ""
    time: float = 0.0
    """Both filled in by whoever writes it down. Of two ratings of one reply the later counts."""


class JudgementQuery(Message, kw_only=True):
    """Judgements of any of these targets, and of all steps of their runs."""

    targets: list[str]


class Judgements(Message, kw_only=True):
    judgements: list[Judgement]
    """Oldest first, each once."""


OPERATIONS: dict[str, tuple[type[Message], type[Message]]] = {
    "hello": (Nothing, Welcome),
    "attach": (Nothing, Snapshot),
    "submit": (Submit, Run),
    "runs": (ListRuns, RunList),
    "show": (RunRef, RunDetail),
    "stop": (Stop, Taken),
    "pause": (Command, Taken),
    "continue": (Continue, Taken),
    "save": (Command, Taken),
    "evaluate": (Command, Taken),
    "stacks": (Command, Taken),
    "set": (Set, Taken),
    "resume": (Resume, Run),
    "delete": (RunRef, Nothing),
    "reorder": (Reorder, Run),
    "series": (SeriesQuery, SeriesReply),
    "log": (LogQuery, LogReply),
    "telemetry": (TelemetryQuery, TelemetryHistory),
    "shutdown": (Shutdown, Nothing),
    "reindex": (Nothing, RunList),
    "service_open": (OpenService, Service),
    "service_ask": (Ask, Answer),
    "service_cancel": (Cancel, Nothing),
    "service_close": (ServiceRef, Nothing),
    "judge": (Judgement, Judgement),
    "judgements": (JudgementQuery, Judgements),
}
"""Operation -> (request type, reply type)."""


# ── published bodies ───────────────────────────────────────────────────────────────────────────────────────────────


class RunChanged(Message, tag="run", kw_only=True):
    """A run as it is now. State changes are published at once, progress at most five times a second."""

    run: Run


class RunRemoved(Message, tag="removed", kw_only=True):
    run: str


class Points(Message, tag="points", kw_only=True):
    """New metric values of a run, coalesced. `values[name]` is a list of [step, value] in ascending steps."""

    run: str
    attempt: int
    values: dict[str, list[tuple[int, float]]]


class Told(Message, tag="told", kw_only=True):
    """A journal entry that a screen shows as it is: checkpoint, evaluation, sample, ledger, warning, phase, start, end.
    `entry` is the journal's JSON object."""

    run: str
    entry: dict[str, Any]


class Ranks(Message, tag="ranks", kw_only=True):
    run: str
    ranks: list[Rank]


class ServiceChanged(Message, tag="service", kw_only=True):
    service: Service


class ServiceEvent(Message, tag="service_event", kw_only=True):
    """Something a service said while answering `request`: tokens, progress. Never coalesced, never dropped by the supervisor."""

    service: str
    request: str
    kind: str
    data: dict[str, Any] = {}


class Closing(Message, tag="closing", kw_only=True):
    """The supervisor is about to end."""


Body = RunChanged | RunRemoved | Points | Told | Ranks | Telemetry | ServiceChanged | ServiceEvent | Closing


# ── supervisor and workers ─────────────────────────────────────────────────────────────────────────────────────────


class Joined(Message, tag="joined", kw_only=True):
    """A worker's first word on each connection. `job` is a run id or a service id."""

    job: str
    attempt: int
    rank: int
    pid: int
    start_time: float
    """The process's start time (psutil.Process.create_time): with the pid, its identity."""


class Written(Message, tag="written", kw_only=True):
    """The journal is `size` bytes long now. A bell, not the content: the supervisor reads the file."""

    job: str
    size: int


class Heartbeat(Message, tag="heartbeat", kw_only=True):
    job: str
    rank: Rank


class Answered(Message, tag="answered", kw_only=True):
    """The answer to an `Instruction`."""

    id: str
    step: int = 0
    result: Any = None
    problem: Problem | None = None


class Said(Message, tag="said", kw_only=True):
    """From a service worker, while answering `request`."""

    request: str
    kind: str
    data: dict[str, Any] = {}


class Status(Message, tag="status", kw_only=True):
    """From a service worker: its new state, for `Service`."""

    state: str
    target: str = ""
    device: str = ""
    detail: str = ""
    address: str = ""
    figures: dict[str, float] = {}


FromWorker = Joined | Written | Heartbeat | Answered | Said | Status


class Instruction(Message, tag="instruction", kw_only=True):
    """To a worker: `stop pause continue save evaluate set generate stacks`, or a service's question. Answered with the same id."""

    id: str
    name: str
    arguments: dict[str, Any] = {}


class CancelInstruction(Message, tag="cancel", kw_only=True):
    """To a service worker: give up the question with this request name."""

    request: str


ToWorker = Instruction | CancelInstruction
