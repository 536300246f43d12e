"""Append-only journals: a JSON object a line, one writer a file.

`events.jsonl` is written by rank 0 of the worker, `lifecycle.jsonl` by the supervisor. A line that
`Writer.write` has returned for survives kill -9 of anything; it survives the machine itself once synced, which
checkpoints, state changes and ledger entries are at once. A torn last line is what a crash leaves behind: readers
pass over it and the next writer cuts it off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.protocol.codes import UNKNOWN
from engine.protocol.messages import Problem


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What every line has. `time` is seconds since the epoch; `attempt` counts worker starts from 1."""

    time: float = msgspec.field(default_factory=time.time)
    attempt: int


class Start(Entry, tag="start", kw_only=True):
    """A worker has loaded everything and is about to take its first step; the facts that do not change after."""

    step: int = 0
    """Completed steps: 0, or the step resumed from."""
    max_steps: int
    epochs: float
    steps_per_epoch: float
    processes: int
    global_batch: int
    parameters: int
    trainable_parameters: int
    rows: int
    trained_tokens: int
    """Trained tokens in one epoch."""
    resumed: str = ""
    """How a resume went: `exact`, or what drifted."""
    facts: dict[str, Any] = {}
    """Anything else worth showing: dtype, devices, versions."""


class Metrics(Entry, tag="metrics", kw_only=True):
    """Scalars of one optimiser step; names as in DESIGN, e.g. `train/loss`. None stands for a value that is not finite."""

    step: int
    epoch: float = 0.0
    values: dict[str, float | None]


class Phase(Entry, tag="phase", kw_only=True):
    """What the worker is doing: `loading`, `tokenising`, `compiling`, `first step`, `training`, `evaluating`, `saving` …"""

    name: str
    detail: str = ""
    done: int = 0
    total: int = 0


class Checkpoint(Entry, tag="checkpoint", kw_only=True):
    """A complete checkpoint exists at `path` (absolute)."""

    step: int
    path: str
    metrics: dict[str, float] = {}
    best: bool = False
    removed: list[int] = []
    """Steps of older checkpoints that the keep limit removed."""


class Evaluation(Entry, tag="evaluation", kw_only=True):
    """Results on held-out data after `step` optimiser steps; names like `eval/loss`."""

    step: int
    values: dict[str, float | None]
    seconds: float = 0.0


class Sample(Entry, tag="sample", kw_only=True):
    """One generated reply, kept."""

    step: int
    prompt: str
    reply: str
    reference: str = ""
    scores: dict[str, float] = {}
    probe: bool = False
    """Asked by the profile itself, at every evaluation."""


class Ledger(Entry, tag="ledger", kw_only=True):
    """A setting changed, or a command taken, while the run was running; valid from the step after `step`.

    `name` is the setting's key, or the mark's name. `code` is `mark.…`, or `pause.…` for a pause; empty in older
    journals.
    """

    code: str = ""
    step: int
    name: str
    old: Any = None
    new: Any = None


class BadRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row of a bad batch. `loss` is its own, None when that is not finite; `file` and `line` are empty where not known."""

    row: int
    """Its number in the prepared set, from 0."""
    text: str
    tokens: int
    loss: float | None = None
    file: str = ""
    line: int = 0


class BadBatch(Entry, tag="bad_batch", kw_only=True):
    """The step after `step` is held back: its rows, the worst first. The run is paused until told to `skip` them, to
    `rollback` and skip them, or to go on."""

    code: str = ""
    """`pause.loss_not_finite`, `pause.gradient_not_finite` or `pause.loss_spike`; empty in older journals."""
    step: int
    reason: str
    rows: list[BadRow]
    total: int
    """Rows of the global batch; `rows` may hold fewer."""


class Warn(Entry, tag="warning", kw_only=True):
    """Something the user should know; `hint` says how to mend it. The supervisor writes those on silent ranks into the lifecycle."""

    code: str = UNKNOWN
    """One of `codes.CODES`. The default is for older journals: every `Warn` made here names its own."""
    message: str
    hint: str = ""
    step: int | None = None


class End(Entry, tag="end", kw_only=True):
    """The worker's last word: `completed`, `stopped`, or `failed` with the problem."""

    step: int
    status: str
    problem: Problem | None = None


class State(Entry, tag="state", kw_only=True):
    """Lifecycle: the run moved. `state` is one of `states.STATES`; `reason` says why for a pause or an end, in words, and
    `code` as one of `codes.CODES`."""

    state: str
    reason: str = ""
    code: str = ""
    step: int | None = None
    problem: Problem | None = None


class Launched(Entry, tag="launched", kw_only=True):
    """Lifecycle: the job's first process was started. With the start time the pid names one process for good."""

    pid: int
    start_time: float
    stage: str
    devices: list[int] = []


class Adopted(Entry, tag="adopted", kw_only=True):
    """Lifecycle: a new supervisor found the run's processes alive."""

    pid: int


class Exit(Entry, tag="exit", kw_only=True):
    """Lifecycle: the job's first process ended. `status` is its exit status, negative for a signal, None if unknown."""

    pid: int
    status: int | None


class Unknown(Entry, tag="unknown", kw_only=True):
    """A line of a kind that this version does not know; kept, never an error (lenient with what machines say)."""

    line: str = ""


EventEntry = Start | Metrics | Phase | Checkpoint | Evaluation | Sample | Ledger | BadBatch | Warn | End
LifecycleEntry = State | Launched | Adopted | Exit | Warn
AnyEntry = EventEntry | State | Launched | Adopted | Exit | Unknown

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEntry)
_SYNCED = (Start, Checkpoint, Ledger, BadBatch, End, State, Launched, Adopted, Exit)


def decode(line: bytes) -> AnyEntry:
    """One line without its newline. A line that is not one of ours becomes `Unknown`."""
    try:
        entry: AnyEntry = _decoder.decode(line)
        return entry
    except msgspec.MsgspecError:
        return Unknown(time=0.0, attempt=0, line=line.decode("utf-8", "replace"))


def encode(entry: AnyEntry) -> bytes:
    """One line without its newline. JSON has no NaN or infinity: msgspec writes null."""
    return _encoder.encode(entry)


class Writer:
    """The one writer of a journal.

    Opening cuts off a torn last line. `write` raises OSError (ENOSPC, EFBIG, EIO …) with the file as it was before:
    the line is either whole or absent, and may be written again when there is room.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = _whole_length(self._descriptor)
        os.ftruncate(self._descriptor, self.size)

    def write(self, entry: AnyEntry) -> int:
        """Append one entry; returns the journal's length in bytes after it."""
        line = encode(entry) + b"\n"
        written = 0
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


def _whole_length(descriptor: int) -> int:
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
    """Entries from byte `offset` on, each with the offset after it. A torn last line and a missing file yield nothing.

    `limit` bounds the bytes taken in this call, for readers that must not block their loop for long.
    """
    for line, after in read_lines(path, offset, limit):
        yield decode(line), after


def read_lines(path: Path, offset: int = 0, limit: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Like `read`, undecoded."""
    if not path.exists():
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
