"""Requests of clients to the supervisor, and its replies. `OPERATIONS` is the whole table, and the reason why the file
has more than 400 lines."""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.protocol.description import CleanItem, Run, RunDetail, Service, Telemetry
from engine.protocol.envelope import Message


class Nothing(Message, kw_only=True):
    """An empty request or reply."""


class WarmWorker(Message, kw_only=True):
    """The worker that the supervisor keeps ahead of the next job."""

    state: str
    """`importing`, `ready`, or `none`; then `reason` says why there is none."""
    pid: int = 0
    memory: int = 0
    """Bytes that are resident."""
    reason: str = ""


class Welcome(Message, kw_only=True):
    """Describes the running supervisor. `started` is in seconds since the epoch."""

    session: str
    pid: int
    protocol: int
    home: str
    host: str
    started: float
    jobs: list[str] = []
    """Ids of live runs."""
    services: list[Service] = []
    ignored: int = 0
    """Messages that could not be read, since it was started."""
    notes: list[str] = []
    """What keeps this engine from working as usual, such as a disk that cannot be written, one sentence each."""
    warm: WarmWorker | None = None
    """Null from an engine that keeps none ahead by its version."""


class Snapshot(Message, kw_only=True):
    """The state at `seq`. The client receives every event after it."""

    session: str
    seq: int
    runs: list[Run]
    services: list[Service] = []
    telemetry: Telemetry | None = None


class Submit(Message, kw_only=True):
    """A run to queue. `profile` is the resolved profile as YAML text; the values in `environment` are never written to
    disk."""

    profile: str
    kind: str = "train"
    """`train` or `prepare`."""
    source: str = ""
    """Where the profile came from, as shown to the user."""
    directory: str = ""
    """The directory that relative sources are resolved against."""
    environment: dict[str, str] = {}
    output: str = ""
    """Not used any more: `checkpoint.output` in the profile says where the final checkpoint goes."""
    first: str = ""
    """The stage to start with; the results of earlier stages are taken from the newest run of the same profile. Empty:
    the first."""
    group: str = ""
    """The group that the run joins."""


class RunRef(Message, kw_only=True):
    """Names a run."""

    run: str
    """An id, an unambiguous prefix of one, or `last`."""


class ListRuns(Message, kw_only=True):
    """`state`: only runs in this state; empty: all runs."""

    state: str = ""


class RunList(Message, kw_only=True):
    """Runs, the oldest first."""

    runs: list[Run]


class Stop(RunRef, kw_only=True):
    """`now`: end the processes by signals instead of stopping at the next step boundary."""

    now: bool = False


class Command(RunRef, kw_only=True):
    """A command without arguments to a run that is training."""


class Continue(RunRef, kw_only=True):
    """`choice` is for a run that holds a bad batch back: `skip` leaves its rows out, `rollback` returns to the
    checkpoint before and then leaves them out; empty trains on the batch where that is possible."""

    choice: str = ""


class Set(RunRef, kw_only=True):
    """Settings to change while the run is running, by dotted key."""

    changes: dict[str, Any]


class Trace(RunRef, kw_only=True):
    """Asks for a trace of the next `steps` steps, in `traces/` of the run's directory."""

    steps: int = 3


class Taken(Message, kw_only=True):
    """The run's state after a command, and the step at which the worker took it."""

    run: str
    state: str
    step: int


class Resume(RunRef, kw_only=True):
    """`step`: the checkpoint to resume from; null: the newest. `changes`: settings by dotted key. The values in
    `environment` are never written to disk."""

    step: int | None = None
    changes: dict[str, Any] = {}
    environment: dict[str, str] = {}


class Reorder(RunRef, kw_only=True):
    """The new position of a queued run, from 1, and its new priority; 0 and null change nothing. With both, it is moved
    after it has got the priority. A run that is moved among runs of another priority takes over theirs."""

    position: int = 0
    priority: int | None = None


class Label(RunRef, kw_only=True):
    """Tags to add and to remove; a note, a pin and a group where they are not null. An empty group: it leaves its
    group."""

    add: list[str] = []
    remove: list[str] = []
    note: str | None = None
    pinned: bool | None = None
    group: str | None = None


class SeriesQuery(RunRef, kw_only=True):
    """Asks for metrics `names`, reduced to at most `points` buckets each, from step `first` to `last` (inclusive; null:
    from the start, to the end)."""

    names: list[str]
    points: int = 400
    first: int | None = None
    last: int | None = None


CLOCK = "clock/time"
"""A series of every run: when each step was recorded, in seconds since the epoch."""


class Series(Message, kw_only=True):
    """One metric in buckets of ascending steps, as parallel lists of equal length: the step range of each bucket, its
    lowest, highest, last and mean value, and how many points it has."""

    name: str
    first_step: list[int]
    last_step: list[int]
    low: list[float]
    high: list[float]
    last: list[float]
    mean: list[float] = []
    count: list[int] = []
    total: int = 0
    """How many points the range has before the reduction."""


class SeriesReply(Message, kw_only=True):
    """The metrics in the order of the query."""

    run: str
    series: list[Series]


class LogQuery(RunRef, kw_only=True):
    """`offset` null: the last `limit` bytes of the log; else at most `limit` bytes from there on."""

    offset: int | None = None
    limit: int = 65536


class LogReply(Message, kw_only=True):
    """A part of the log, and the offset after it."""

    text: str
    offset: int


class TelemetryQuery(Message, kw_only=True):
    """Which samples of devices and host to return: of the last `seconds`; or, with `first`, those from `first` to
    `last` (seconds since the epoch, now by default). With `points`, at most about so many, evenly spaced."""

    seconds: float = 600.0
    first: float | None = None
    last: float | None = None
    points: int = 0


class TelemetryHistory(Message, kw_only=True):
    """Samples, the oldest first: one per second of the last hour, one per minute before."""

    samples: list[Telemetry]


class CleanQuery(Message, kw_only=True):
    """`remove`: paths of listed items to remove; none: only list them. `unsafe`: also those that are not safe."""

    remove: list[str] = []
    unsafe: bool = False


class CleanReply(Message, kw_only=True):
    """What can be removed now, the largest first, and what has been removed."""

    items: list[CleanItem]
    removed: list[CleanItem] = []
    disk_free: int = 0
    disk_total: int = 0


class Shutdown(Message, kw_only=True):
    """`force`: end the live jobs too."""

    force: bool = False


class OpenService(Message, kw_only=True):
    """A service to start: a worker `engine.workers.<kind>`. The values in `environment` are never written to disk."""

    kind: str
    options: dict[str, Any] = {}
    environment: dict[str, str] = {}
    launch: dict[str, Any] | None = None
    """Start it as a Slurm job, with these settings of `launch`: `slurm`, `python`, `environment`; null: on the engine's
    host."""


class ServiceRef(Message, kw_only=True):
    """Names a service, or a run that is training."""

    service: str


class Ask(ServiceRef, kw_only=True):
    """A request to a service's worker. `request` is an id that the client chooses, for `service_event` events and for
    `service_cancel`; `question` names what is asked. The reply comes when the worker has answered; its events are
    published meanwhile."""

    request: str
    question: str
    arguments: dict[str, Any] = {}


class Answer(Message, kw_only=True):
    """The worker's result."""

    result: Any = None


class Cancel(ServiceRef, kw_only=True):
    """Names the request to cancel."""

    request: str


class Judgement(Message, kw_only=True):
    """A vote between two replies whose models were hidden, or a rating of one reply. It is stored with the runs that it
    is about."""

    targets: list[str]
    """The models, from left to right for a vote, by the labels that workers give them: `run@step`, or a model's
    name."""
    prompt: str
    replies: list[str]
    """In the order of `targets`."""
    vote: str = ""
    """`left`, `right`, `tie` or `both bad`; empty for a rating."""
    rating: int = 0
    """1 to 5; 0 for a vote."""
    settings: dict[str, Any] = {}
    """The sampling settings of the replies."""
    id: str = ""
    time: float = 0.0
    """The supervisor sets `id` and `time`. Of two ratings of one reply the later counts."""


class JudgementQuery(Message, kw_only=True):
    """Asks for judgements of any of these targets, at any step of their runs."""

    targets: list[str]


class Judgements(Message, kw_only=True):
    """The judgements that were found."""

    judgements: list[Judgement]
    """Oldest first, each once."""


class Operation(NamedTuple):
    """One row of `OPERATIONS`. `problems` are the reasons for which it is refused, beside those of every operation."""

    request: type[Message]
    reply: type[Message]
    meaning: str
    problems: tuple[str, ...] = ()


NO_RUN = "no run has this id"
NOT_LIVE = "the run has ended, or waits in the queue"
OTHER_HOST = "the run belongs to another host"
PAST_TRAINING = "the run is in a stage after training"
NO_SERVICE = "no service has this id"
_TRAINING = (NO_RUN, NOT_LIVE, OTHER_HOST, PAST_TRAINING)

OPERATIONS: dict[str, Operation] = {
    "hello": Operation(Nothing, Welcome, "Describe the supervisor."),
    "attach": Operation(Nothing, Snapshot, "Return the state, and send all events after it to this client."),
    "submit": Operation(
        Submit,
        Run,
        "Check a profile, and queue a run of it.",
        (
            "the profile is not valid",
            "the environment lacks a variable that the profile names",
            "the host lacks the devices",
            "the disk is nearly full",
            "`export.output` is not empty",
            "no earlier run has the results that `first` needs, or its settings differ",
        ),
    ),
    "runs": Operation(ListRuns, RunList, "List runs."),
    "show": Operation(RunRef, RunDetail, "Describe a run in full.", (NO_RUN,)),
    "stop": Operation(
        Stop,
        Taken,
        "Stop a run: save a checkpoint at the next step boundary, and end.",
        (NO_RUN, "the run has ended", OTHER_HOST),
    ),
    "pause": Operation(Command, Taken, "Pause training at the next step boundary.", _TRAINING),
    "continue": Operation(Continue, Taken, "Let a paused run go on.", _TRAINING),
    "save": Operation(Command, Taken, "Save a checkpoint at the next step boundary.", _TRAINING),
    "evaluate": Operation(Command, Taken, "Evaluate at the next step boundary.", _TRAINING),
    "trace": Operation(
        Trace,
        Taken,
        "Record a trace of the next steps, from the next step boundary on.",
        (*_TRAINING, "a trace is being recorded already, or the number of steps is out of range"),
    ),
    "stacks": Operation(Command, Taken, "Write the stacks of all ranks to the log.", _TRAINING),
    "set": Operation(
        Set,
        Taken,
        "Change settings while the run is running.",
        (*_TRAINING, "a setting cannot be changed while running, or cannot have this value"),
    ),
    "resume": Operation(
        Resume,
        Run,
        "Queue the next attempt of a run that has ended.",
        (
            NO_RUN,
            "the run has not ended",
            "there is no checkpoint at this step",
            "the changed profile is not valid",
            "the disk is nearly full",
        ),
    ),
    "delete": Operation(
        RunRef, Nothing, "Delete the directory of a run that has ended.", (NO_RUN, "the run has not ended")
    ),
    "reorder": Operation(
        Reorder,
        Run,
        "Move a run within the queue, or change its priority.",
        (NO_RUN, "the run is not queued", "the priority is out of range"),
    ),
    "label": Operation(
        Label,
        Run,
        "Change the tags, the note, the pin and the group of a run, which are kept in its directory.",
        (NO_RUN, "a tag, the note or the group is not valid", "it cannot be written"),
    ),
    "series": Operation(SeriesQuery, SeriesReply, "Return metrics, reduced to a number of buckets.", (NO_RUN,)),
    "log": Operation(LogQuery, LogReply, "Return a part of a run's log.", (NO_RUN,)),
    "telemetry": Operation(TelemetryQuery, TelemetryHistory, "Return samples of the past."),
    "clean": Operation(
        CleanQuery,
        CleanReply,
        "List what can be removed, and remove what is asked for.",
        ("a path is not listed or safe",),
    ),
    "shutdown": Operation(Shutdown, Nothing, "End the supervisor.", ("jobs are live, and `force` is not set",)),
    "reindex": Operation(Nothing, RunList, "Rebuild the index from the journals."),
    "service_open": Operation(
        OpenService, Service, "Start a service.", ("there is no such kind of service", "its process cannot be started")
    ),
    "service_ask": Operation(
        Ask,
        Answer,
        "Send a request to a service, or `generate` to a run that is training.",
        (NO_SERVICE, "the worker answers with a problem", "the worker ends before it has answered"),
    ),
    "service_cancel": Operation(Cancel, Nothing, "Cancel a request; its reply still comes.", (NO_SERVICE,)),
    "service_close": Operation(ServiceRef, Nothing, "End a service.", (NO_SERVICE,)),
    "judge": Operation(
        Judgement,
        Judgement,
        "Store a vote or a rating.",
        ("it is neither a vote between two replies nor a rating of one", "it cannot be written"),
    ),
    "judgements": Operation(JudgementQuery, Judgements, "Return stored votes and ratings."),
}
"""The operations by name, as `Request.operation` has it."""
