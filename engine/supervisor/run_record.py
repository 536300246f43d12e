"""One run as the supervisor knows it: its summary, how far its journal is read, and who works on it."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.protocol import journal, states
from engine.protocol.home import RunDirectory
from engine.protocol.journal import Checkpoint, End, Evaluation, Ledger, Metrics, Phase, Start
from engine.protocol.messages import Instruction, Problem, Rank, Run
from engine.supervisor.hang_detector import Pulse
from engine.supervisor.processes import Leader

TURN = 1 << 19
"""Bytes of a journal taken in one turn of the loop (about 10 ms)."""

Point = tuple[str, int, float]


class Job(msgspec.Struct, kw_only=True):
    """`job.json`: what was submitted, beside the profile."""

    kind: str
    name: str
    source: str
    directory: str
    output: str
    host: str
    created: float
    first: str = ""
    """The stage that it begins with, where that is not the first."""


@dataclass
class Record:
    run: Run
    directory: RunDirectory
    job: Job
    offset: int = 0
    """Bytes of events.jsonl read."""
    stage: str = ""
    """Which worker is at it, by the stage of `protocol.stages`."""
    leader: Leader | None = None
    ranks: dict[int, Rank] = field(default_factory=dict)
    identity: bytes | None = None
    """Rank 0's address on the workers' socket, once it has joined."""
    held: list[Instruction] = field(default_factory=list)
    """Instructions for a rank 0 that has not joined yet."""
    environment: dict[str, str] = field(default_factory=dict)
    """From the submitting shell; in memory only."""
    end: End | None = None
    """The present attempt's last word."""
    pulse: Pulse = field(default_factory=Pulse)
    """How the present attempt's ranks are heard."""
    warnings: list[str] = field(default_factory=list)
    """The supervisor's own, of this run."""
    stop_asked: bool = False
    resume_step: int | None = None
    oom_kills: int = 0
    """The kernel's count when the worker was started."""
    changed: bool = False
    """The summary differs from what was last published."""
    points: list[Point] = field(default_factory=list)
    told: list[tuple[int, bytes]] = field(default_factory=list)
    """Read from the journal, not yet in the registry."""
    lifecycle: journal.Writer | None = None
    unwritten: list[journal.LifecycleEntry] = field(default_factory=list)
    """Lifecycle entries that a full disk has refused so far; written, in order, when there is room."""

    def move(self, event: str, *, reason: str = "", code: str = "", problem: Problem | None = None) -> None:
        """Take one transition of the table and journal it, synced, before anybody hears of it."""
        run = self.run
        run.state = states.move(run.state or None, event)
        run.reason, run.code, run.problem = reason, code, problem
        now = time.time()
        if run.state in states.ENDED:
            run.ended, run.position, run.phase = now, 0, ""
        self.note(
            journal.State(
                time=now,
                attempt=run.attempt,
                state=run.state,
                reason=reason,
                code=code,
                step=run.step,
                problem=problem,
            )
        )
        self.changed = True

    def note(self, entry: journal.LifecycleEntry) -> None:
        """Journal an entry now, or as soon as the disk takes it: a full disk must not end the supervisor."""
        self.unwritten.append(entry)
        self.write_notes()

    def write_notes(self) -> None:
        try:
            if self.lifecycle is None:
                self.lifecycle = journal.Writer(self.directory.lifecycle)
            while self.unwritten:
                self.lifecycle.write(self.unwritten[0])
                del self.unwritten[0]
        except OSError as error:
            print(f"{self.directory.lifecycle}: {error}; {len(self.unwritten)} entries wait", flush=True)

    def close(self) -> None:
        if self.lifecycle is not None:
            self.lifecycle.close()
            self.lifecycle = None

    def take(self) -> tuple[list[journal.AnyEntry], bool]:
        """Read on in the journal: what it says, and whether there is more. Points and told lines are kept for the registry."""
        entries = []
        start = self.offset
        for line, offset in journal.read_lines(self.directory.events, self.offset, TURN):
            entry = journal.decode(line)
            self._digest(entry, line, offset)
            self.offset = offset
            entries.append(entry)
        return entries, self.offset - start >= TURN

    def _digest(self, entry: journal.AnyEntry, line: bytes, offset: int) -> None:
        run = self.run
        self.changed = True
        if isinstance(entry, (Metrics, Evaluation)):
            known = {name: value for name, value in entry.values.items() if value is not None}
            self.points += [(name, entry.step, value) for name, value in known.items()]
            run.metrics |= known
        if isinstance(entry, Metrics):
            run.step, run.epoch = entry.step, entry.epoch
            return
        self.told.append((offset, line))
        if isinstance(entry, Start):
            run.step, run.max_steps, run.epochs = entry.step, entry.max_steps, entry.epochs
            run.global_batch, run.processes = entry.global_batch, entry.processes
            run.parameters, run.trainable_parameters = entry.parameters, entry.trainable_parameters
        elif isinstance(entry, Phase):
            run.phase = f"{entry.name} {entry.detail}".strip()
        elif isinstance(entry, Ledger) and entry.name == "training.max_steps":
            run.max_steps = int(entry.new)
        elif isinstance(entry, End) and entry.attempt == run.attempt:
            self.end = entry
            run.step = entry.step

    def drain(self) -> tuple[list[Point], list[tuple[int, bytes]]]:
        """What the registry has not yet; the caller stores it."""
        points, self.points = self.points, []
        told, self.told = self.told, []
        return points, told


def by_name(entries: list[journal.AnyEntry]) -> dict[str, list[tuple[int, float]]]:
    """The points of some metrics and evaluations, for a `Points` message."""
    values: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry, (Metrics, Evaluation)):
            for name, value in entry.values.items():
                if value is not None:
                    values[name].append((entry.step, value))
    return dict(values)


def checkpoint_metrics(told: list[dict[str, Any]]) -> dict[int, Checkpoint]:
    """The newest checkpoint entry of each step."""
    return {entry["step"]: msgspec.convert(entry, Checkpoint) for entry in told if entry.get("kind") == "checkpoint"}


def read_job(directory: RunDirectory) -> Job | None:
    """`job.json`, or None for a directory that is no run (or one that was being made when the machine stopped)."""
    try:
        return msgspec.json.decode((directory.path / "job.json").read_bytes(), type=Job)
    except (OSError, msgspec.MsgspecError):
        return None


def replay(
    directory: RunDirectory, job: Job, summary: Run | None, offset: int
) -> tuple[Record, journal.Launched | None]:
    """A run's record from its directory: the lifecycle journal says the state, the registry's summary spares reading the
    events again. Also returns the last launch that has no exit after it, for adoption."""
    run = summary or Run(id=directory.id)
    run.kind, run.name, run.host, run.created = job.kind, job.name, job.host, job.created
    run.directory, run.profile = str(directory.path), job.source
    run.state = ""
    launched = None
    stage = ""
    warnings: list[str] = []
    for entry, _ in journal.read(directory.lifecycle):
        run.attempt = max(run.attempt, entry.attempt)
        if isinstance(entry, journal.State):
            run.state, run.reason, run.code, run.problem = entry.state, entry.reason, entry.code, entry.problem
            run.ended = entry.time if entry.state in states.ENDED else 0.0
        elif isinstance(entry, journal.Launched):
            launched, stage, run.started = entry, entry.stage, entry.time
            run.devices = entry.devices
        elif isinstance(entry, journal.Warn):
            warnings.append(entry.message)
        elif isinstance(entry, journal.Exit):
            launched = None
    record = Record(run=run, directory=directory, job=job, offset=offset if summary else 0, stage=stage)
    record.warnings = warnings
    run.stage = stage
    return record, launched


def log_tail(path: Path, limit: int = 65536) -> str:
    """The last bytes of a log as text; empty when there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
