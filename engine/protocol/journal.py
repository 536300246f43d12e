"""Append-only journals: each file has one writer, and each line is a JSON object.

Rank 0 of the worker writes `events.jsonl`, the supervisor `lifecycle.jsonl`. A line for which `Writer.write` has
returned survives kill -9 of any process; once it is synced, it also survives a crash of the host. Checkpoints, state
changes and ledger entries are synced at once. A crash may leave an incomplete last line: readers ignore it, and the
next writer removes it. `docs/journals.md` is generated from these definitions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from engine.protocol import attempt_fence
from engine.protocol.codes import UNKNOWN
from engine.protocol.messages import Problem


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind"):
    """The fields of every line: `time` in seconds since the epoch, and the `attempt`, which counts starts of the run's
    worker from 1."""

    time: float = msgspec.field(default_factory=time.time)
    attempt: int


class Start(Entry, tag="start", kw_only=True):
    """The worker has loaded everything and is about to take its first step. These facts do not change in the
    attempt."""

    step: int = 0
    """Completed optimiser steps: 0, or the step that the run resumed from."""
    max_steps: int
    epochs: float
    steps_per_epoch: float
    processes: int
    global_batch: int
    parameters: int
    trainable_parameters: int
    rows: int
    trained_tokens: int
    """Tokens of one epoch that have a loss."""
    resumed: str = ""
    """After a resume: `exact`, or what could not be restored exactly."""
    facts: dict[str, Any] = {}
    """Further facts for display: dtype, devices, versions."""


class Metrics(Entry, tag="metrics", kw_only=True):
    """Metrics of one optimiser step by name, such as `train/loss`. A value that is not finite is null."""

    step: int
    epoch: float = 0.0
    values: dict[str, float | None]


class Phase(Entry, tag="phase", kw_only=True):
    """What the worker is doing (`loading`, `tokenising`, `compiling`, `first step`, `training`, `evaluating`, `saving`
    …), and how far it is."""

    name: str
    detail: str = ""
    done: int = 0
    total: int = 0


class Checkpoint(Entry, tag="checkpoint", kw_only=True):
    """A complete checkpoint exists at the absolute `path`. `best`: it is the best one so far."""

    step: int
    path: str
    metrics: dict[str, float] = {}
    best: bool = False
    removed: list[int] = []
    """Steps of older checkpoints that `checkpoint.keep` has removed."""


class Evaluation(Entry, tag="evaluation", kw_only=True):
    """Results on held-out rows after `step` optimiser steps, by names such as `eval/loss`. A value that is not finite
    is null."""

    step: int
    values: dict[str, float | None]
    seconds: float = 0.0


class Sample(Entry, tag="sample", kw_only=True):
    """A generated reply, with its prompt and the reference where the data has one."""

    step: int
    prompt: str
    reply: str
    reference: str = ""
    scores: dict[str, float] = {}
    probe: bool = False
    """Whether the prompt is one of `evaluation.probes`."""


class Ledger(Entry, tag="ledger", kw_only=True):
    """A setting was changed, or a command taken, while the run was running. It takes effect in the step after `step`.

    `name` is the setting's key, or the mark's name. `code` is `mark.…`, or `pause.…` for a pause; empty in older
    journals.
    """

    code: str = ""
    step: int
    name: str
    old: Any = None
    new: Any = None


class BadRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row of a bad batch. `loss` is the row's own, null when it is not finite; `file` and `line` (from 1) are empty
    where unknown."""

    row: int
    """Its index in the prepared rows, from 0."""
    text: str
    tokens: int
    loss: float | None = None
    file: str = ""
    line: int = 0


class BadBatch(Entry, tag="bad_batch", kw_only=True):
    """The step after `step` is held back, for `reason`; its rows, the worst first. The run is paused until a `continue`
    command says whether to skip the rows, to return to the checkpoint before and skip them, or to train on them."""

    code: str = ""
    """`pause.loss_not_finite`, `pause.gradient_not_finite` or `pause.loss_spike`; empty in older journals."""
    step: int
    reason: str
    rows: list[BadRow]
    total: int
    """How many rows the global batch has; `rows` may have fewer."""


class Warn(Entry, tag="warning", kw_only=True):
    """Something that the user should know; `hint` says what to do. Warnings of the supervisor, about ranks that hang,
    are in `lifecycle.jsonl`."""

    code: str = UNKNOWN
    """One of `codes.CODES`. The default is for older journals: every `Warn` made here names its own."""
    message: str
    hint: str = ""
    step: int | None = None


class Memory(Entry, tag="memory", kw_only=True):
    """What the run takes: as `forecast`, as `rehearsed` before the first step, or `estimated` where the longest batch
    was not tried, and as it was (`actual`) in the end.

    `device_bytes` is the peak of the fullest card, in a forecast with what torch does not count, or null without cards;
    `host_bytes` the memory of all the job's processes together. The other fields are the forecast's.
    """

    source: str
    device_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    seconds: float | None = None
    error_percent: float | None = None
    strategy: str = ""
    verdict: str = ""
    """`fits`, `near`, `too_large`, or `unknown` where a card does not tell its memory."""
    code: str = ""
    """`memory.batch_not_tried` with `estimated`, which is a bound; else empty."""
    room_bytes: int | None = None
    """With `estimated`: the memory that the job could get, of the card or of the host."""


class End(Entry, tag="end", kw_only=True):
    """The last entry of the worker. `status`: `completed`, `stopped`, or `failed` with the problem."""

    step: int
    status: str
    problem: Problem | None = None


class State(Entry, tag="state", kw_only=True):
    """The run has a new state. `reason` says in words why it was paused or ended, `code` as one of `codes.CODES`."""

    state: str
    reason: str = ""
    code: str = ""
    step: int | None = None
    problem: Problem | None = None


class Queued(Entry, tag="queued", kw_only=True):
    """The run waits in the queue at another place. Runs with a higher `priority` come first, of the same priority those
    with a lower `place`."""

    priority: int = 0
    place: float = 0.0


class Launched(Entry, tag="launched", kw_only=True):
    """The first process of a stage was started. The pid and `identity` identify it, even when the pid is used again.

    `identity` is the boot id and the clock ticks since then at which the process was started, `BOOT/TICKS`. Where it is
    empty (older versions, no /proc), `start_time` in seconds since the epoch takes its place, which moves when the
    clock is set.
    """

    pid: int
    start_time: float
    identity: str = ""
    stage: str
    devices: list[int] = []
    slurm: str = ""
    """The id of the Slurm job that stands in the place of the process."""
    slurm_name: str = ""
    """The name that it is submitted under. An entry without the id is written before that."""
    slurm_conf: str = ""
    """The cluster's configuration, where SLURM_CONF names one."""


class Adopted(Entry, tag="adopted", kw_only=True):
    """A new supervisor has found the run's processes alive, and follows them."""

    pid: int


class Exit(Entry, tag="exit", kw_only=True):
    """The first process has ended. `status` is its exit status, negative for a signal, null when it is unknown."""

    pid: int
    status: int | None


class Unknown(Entry, tag="unknown", kw_only=True):
    """A line of a kind that this version does not know, which a newer version may have written; or a `damaged` one,
    which no version has."""

    line: str = ""
    damaged: bool = False


EventEntry = Start | Metrics | Phase | Checkpoint | Evaluation | Sample | Ledger | BadBatch | Warn | Memory | End
LifecycleEntry = State | Queued | Launched | Adopted | Exit | Warn
AnyEntry = EventEntry | State | Queued | Launched | Adopted | Exit | Unknown


class _Kind(msgspec.Struct):
    kind: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEntry)
_KINDS = {str(kind.__struct_config__.tag) for kind in get_args(AnyEntry)}
_LATEST = 1e11
"""Seconds since the epoch of the latest time that an entry may have: in the year 5138."""
_LARGEST = 2**53
_KEPT = 4096
"""Bytes that are kept of a line that cannot be decoded."""
_SYNCED = (Start, Checkpoint, Ledger, BadBatch, End, State, Queued, Launched, Adopted, Exit)


def decode(line: bytes) -> AnyEntry:
    """Decode a line without its newline. A line that cannot be decoded becomes `Unknown`, whatever is in it: a journal
    is read by processes that must not end of it."""
    try:
        entry: AnyEntry = _decoder.decode(line)
        if _is_in_range(entry):
            return entry
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    text = line[:_KEPT].decode("utf-8", "replace")
    return Unknown(time=0.0, attempt=0, line=text, damaged=not _has_unknown_kind(line))


def _is_in_range(entry: AnyEntry) -> bool:
    """Whether the entry can be sent on and indexed: numbers of 64 bits, times of this age, no bottomless nesting."""
    if not 0 <= entry.time < _LATEST or abs(entry.attempt) > _LARGEST or abs(getattr(entry, "step", 0) or 0) > _LARGEST:
        return False
    if isinstance(entry, Metrics):  # most lines: nothing else in them could be out of range
        return True
    try:
        # Some levels deeper than a message has around it.
        msgspec.msgpack.encode([[[[[[[[[[[[[[[[entry]]]]]]]]]]]]]]]])
    except (OverflowError, ValueError, RecursionError):
        return False
    return True


def _has_unknown_kind(line: bytes) -> bool:
    """Whether a line that cannot be decoded is one of a newer version."""
    try:
        kind = msgspec.json.decode(line, type=_Kind).kind
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return kind not in _KINDS


def encode(entry: AnyEntry) -> bytes:
    """Encode a line without its newline. JSON has no NaN or infinity: msgspec writes null."""
    return _encoder.encode(entry)


class Writer:
    """The only writer of a journal. Opening it removes an incomplete last line."""

    def __init__(self, path: Path) -> None:
        attempt_fence.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = _complete_length(self._descriptor)
        os.ftruncate(self._descriptor, self.size)

    def write(self, entry: AnyEntry) -> int:
        """Append an entry, and return the journal's length in bytes.

        Raises OSError (ENOSPC, EFBIG, EIO …) and leaves the file as it was: the entry may be written again when there
        is room.
        """
        line = encode(entry) + b"\n"
        written = 0
        attempt_fence.check()
        try:
            while written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self.size + written)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += written
        if isinstance(entry, _SYNCED):
            os.fsync(self._descriptor)
        return self.size

    def close(self) -> None:
        os.close(self._descriptor)


def _complete_length(descriptor: int) -> int:
    """Length in bytes up to and including the last newline."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read(path: Path, offset: int = 0, limit: int | None = None) -> Iterator[tuple[AnyEntry, int]]:
    """Yield the entries from byte `offset` on, each with the offset after it. An incomplete last line and a missing
    file yield nothing.

    Reading stops after `limit` bytes, for readers that must not block for long.
    """
    for line, after in read_lines(path, offset, limit):
        yield decode(line), after


def read_lines(path: Path, offset: int = 0, limit: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Like `read`, without decoding the lines. A directory or a pipe in the file's place is as good as missing."""
    if not path.is_file():
        return
    taken = 0
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            taken += len(line)
            yield line[:-1], offset
            if limit is not None and taken >= limit:
                return
