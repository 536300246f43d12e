"""One run as the supervisor knows it: its summary, its processes, and how far its journal has been read."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.protocol import attempt_fence, journal, states
from engine.protocol.file_channel import SupervisorFiles
from engine.protocol.home import RunDirectory
from engine.protocol.journal import Checkpoint, End, Evaluation, Ledger, Metrics, Phase, Start
from engine.protocol.messages import CLOCK, Instruction, Problem, Rank, Run
from engine.supervisor import labels
from engine.supervisor.hang_detector import Heartbeats
from engine.supervisor.processes import Leader

BYTES_PER_TURN = 1 << 19
"""Bytes of a journal that are read in one turn of the loop (about 10 ms)."""

Point = tuple[str, int, float]


class Job(msgspec.Struct, kw_only=True):
    """`job.json`: what was submitted beside the profile."""

    kind: str
    name: str
    source: str
    directory: str
    output: str
    host: str
    created: float
    first: str = ""
    """The stage that the run starts with; empty for the first."""


@dataclass(eq=False)
class Record:
    run: Run
    directory: RunDirectory
    job: Job
    offset: int = 0
    """Bytes of events.jsonl that have been read."""
    torn_at: int = -1
    """Where the incomplete last line of events.jsonl begins that was last seen."""
    stage: str = ""
    """The stage of `protocol.stages` whose worker runs, or ran last."""
    leader: Leader | None = None
    ranks: dict[int, Rank] = field(default_factory=dict)
    identity: bytes | None = None
    """Rank 0's address on the workers' socket; None until it has joined."""
    files: SupervisorFiles | None = None
    """Stands for the workers' socket where that does not reach the run."""
    held_instructions: list[Instruction] = field(default_factory=list)
    """Instructions for a rank 0 that has not joined yet."""
    environment: dict[str, str] = field(default_factory=dict)
    """From the submitting shell; in memory only."""
    end: End | None = None
    """The last journal entry of the present attempt's worker, once it has written it."""
    heartbeats: Heartbeats = field(default_factory=Heartbeats)
    """Those of the present attempt."""
    warnings: list[str] = field(default_factory=list)
    """Messages of the warnings that the supervisor itself has given about the run."""
    stop_requested: bool = False
    resume_step: int | None = None
    place: float = 0.0
    """Its place among waiting runs of the same priority: see `waiting`."""
    damage: list[str] = field(default_factory=list)
    """What is wrong with the run's files, one sentence each."""
    remade: bool = False
    """Whether its damaged rows have been made again since it was queued by the user."""
    word_until: float = 0.0
    """Until when its last entry is waited for, once its processes have ended."""
    log_begin: int = 0
    """Bytes that the log had when the worker was started: what is before them is another attempt's."""
    oom_kills: int = 0
    """How many processes the kernel's out-of-memory killer had ended when the worker was started."""
    changed: bool = False
    """The summary differs from what was last published."""
    points: list[Point] = field(default_factory=list)
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    """Offsets and lines of journal entries that are not metrics. Points and entries wait here for the registry."""
    lifecycle: journal.Writer | None = None
    unwritten: list[journal.LifecycleEntry] = field(default_factory=list)
    """Lifecycle entries that a full disk has not taken yet; they are written in order when there is room."""
    said: str = ""
    """What was last said in the log about them."""

    def move(self, event: str, *, reason: str = "", code: str = "", problem: Problem | None = None) -> None:
        """Make one transition of the table of states. It is journalled and synced before it is published."""
        run = self.run
        run.state = states.move(run.state or None, event)
        run.reason, run.code, run.problem = reason, code, problem
        now = time.time()
        if run.state in states.ENDED:
            run.ended, run.position, run.phase = now, 0, ""
        self.write_lifecycle(
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

    def newest_attempt(self) -> int:
        """The number of the newest attempt that any host has begun: Slurm may have done so, and no engine seen it."""
        return max(self.run.attempt, attempt_fence.read(self.directory.path))

    def settle(self, state: str, reason: str, problem: Problem | None) -> None:
        """Give the run a state that its damaged lifecycle does not lead to."""
        run, now = self.run, time.time()
        run.state, run.reason, run.code, run.problem = state, reason, "run.damaged", problem
        run.ended, run.position, run.phase = now, 0, ""
        self.write_lifecycle(
            journal.State(
                time=now, attempt=run.attempt, state=state, reason=reason, code=run.code, step=run.step, problem=problem
            )
        )
        self.changed = True

    def write_lifecycle(self, entry: journal.LifecycleEntry) -> None:
        """Journal an entry now, or as soon as the disk has room: a full disk must not end the supervisor."""
        self.unwritten.append(entry)
        self.flush_lifecycle()

    def flush_lifecycle(self) -> None:
        try:
            if self.lifecycle is None:
                self.lifecycle = journal.Writer(self.directory.lifecycle)
            while self.unwritten:
                self.lifecycle.write(self.unwritten[0])
                del self.unwritten[0]
        except OSError as error:
            text = f"{self.directory.lifecycle}: {error}; {len(self.unwritten)} entries wait"
            if text != self.said:  # asked again every second
                self.said = text
                print(text, flush=True)

    def note_damage(self, text: str) -> None:
        """Say what is wrong with the run's files: in the log once, in the run's warnings, and as its problem where it
        has none."""
        if text in self.damage:
            return
        print(f"{self.directory.path}: {text}".encode(errors="backslashreplace").decode(), flush=True)
        self.damage.append(text)
        self.changed = True
        if self.run.problem is None:
            self.run.problem = Problem(
                code="run.damaged",
                title=f"{self.run.id} is damaged",
                cause="; ".join(self.damage[:5]),
                hint="what is whole is shown; its checkpoints can be resumed by RUN@STEP, and used as models",
            )

    @contextmanager
    def isolate(self) -> Iterator[None]:
        """Whatever goes wrong in the block is this run's: it is shown as damaged, and the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one run must never cost the others
            text = f"its files cannot be followed ({type(error).__name__}: {str(error)[:300]})"
            if text not in self.damage:
                traceback.print_exc()
            self.note_damage(text)

    def close(self) -> None:
        if self.lifecycle is not None:
            self.lifecycle.close()
            self.lifecycle = None

    def has_unread(self) -> bool:
        """Whether the worker's journal is longer than what has been read of it."""
        try:
            return self.directory.events.stat().st_size > self.offset and self.offset != self.torn_at
        except OSError:
            return False

    def read_events(self) -> tuple[list[journal.AnyEntry], bool]:
        """Read the next part of the worker's journal: its entries, and whether there is more. Points and entries are
        kept for the registry."""
        entries = []
        start = self.offset
        for line, offset in journal.read_lines(self.directory.events, self.offset, BYTES_PER_TURN):
            entry = journal.decode(line)
            if isinstance(entry, journal.Unknown) and entry.damaged:
                self._note_damaged_line(self.directory.events, self.offset)
            else:
                self._apply(entry, line, offset)
            self.offset = offset
            entries.append(entry)
        if self.offset == start:
            self.torn_at = start  # an incomplete last line
        return entries, self.offset - start >= BYTES_PER_TURN

    def _note_damaged_line(self, path: Path, offset: int) -> None:
        if not any(text.startswith(path.name) for text in self.damage):
            self.note_warning(f"{path.name} has lines that cannot be read, the first of them at byte {offset}")

    def note_warning(self, text: str) -> None:
        """Say that a part of the run's files is damaged, which changes nothing about its state."""
        self.damage.append(text)
        self.changed = True

    def _apply(self, entry: journal.AnyEntry, line: bytes, offset: int) -> None:
        run = self.run
        self.changed = True
        if isinstance(entry, (Metrics, Evaluation)):
            known = {name: value for name, value in entry.values.items() if value is not None}
            self.points += [(name, entry.step, value) for name, value in known.items()]
            run.metrics |= known
        if isinstance(entry, Metrics):
            self.points.append((CLOCK, entry.step, entry.time))
            run.step, run.epoch = entry.step, entry.epoch
            return
        self.entries.append((offset, line))
        if isinstance(entry, (Start, End)) and entry.attempt > run.attempt:
            run.attempt = entry.attempt  # Slurm has begun it, and no engine has seen that
        if isinstance(entry, Start):
            self.end = None if self.end is not None and self.end.attempt < entry.attempt else self.end
            run.step, run.max_steps, run.epochs = entry.step, entry.max_steps, entry.epochs
            run.global_batch, run.processes = entry.global_batch, entry.processes
            run.parameters, run.trainable_parameters = entry.parameters, entry.trainable_parameters
        elif isinstance(entry, Phase):
            run.phase = f"{entry.name} {entry.detail}".strip()
        elif isinstance(entry, Ledger) and entry.name == "training.max_steps" and type(entry.new) is int:
            run.max_steps = entry.new
        elif isinstance(entry, End) and entry.attempt >= run.attempt:
            self.end = entry
            run.step = entry.step

    def take_unindexed(self) -> tuple[list[Point], list[tuple[int, bytes]]]:
        """Points and entries that the registry does not have yet; the caller stores them."""
        points, self.points = self.points, []
        entries, self.entries = self.entries, []
        return points, entries


def group_points(entries: list[journal.AnyEntry]) -> dict[str, list[tuple[int, float]]]:
    """The points of metrics and evaluations by name, for a `Points` message."""
    values: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry, (Metrics, Evaluation)):
            for name, value in entry.values.items():
                if value is not None:
                    values[name].append((entry.step, value))
    return dict(values)


def find_checkpoints(entries: list[dict[str, Any]]) -> dict[int, Checkpoint]:
    """The newest checkpoint entry of each step."""
    found = {}
    for entry in entries:
        if entry.get("kind") == "checkpoint":
            with suppress(msgspec.ValidationError):
                checkpoint = msgspec.convert(entry, Checkpoint)
                found[checkpoint.step] = checkpoint
    return found


def replay(
    directory: RunDirectory, job: Job, summary: Run | None, offset: int
) -> tuple[Record, journal.Launched | None]:
    """A run's record from its directory, and the last launch without an exit after it, for adoption.

    The state comes from the lifecycle journal. `summary` and `offset` are the registry's, so that its part of the
    worker's journal need not be read again; None and 0 read all of it.
    """
    run = summary or Run(id=directory.id)
    run.kind, run.name, run.host, run.created = job.kind, job.name, job.host, job.created
    run.directory, run.profile = str(directory.path), job.source
    run.state, run.priority, place = "", 0, 0.0
    launched = None
    stage = ""
    warnings: list[str] = []
    damage: list[str] = []
    try:
        entries = [entry for entry, _ in journal.read(directory.lifecycle)]
    except OSError as error:
        entries, damage = [], [f"lifecycle.jsonl cannot be read ({error.strerror})"]
    for entry in entries:
        if isinstance(entry, journal.Unknown) or (
            isinstance(entry, journal.State) and entry.state not in states.STATES
        ):
            if not damage and not (isinstance(entry, journal.Unknown) and not entry.damaged):
                damage.append("lifecycle.jsonl has lines that cannot be read")
            continue
        run.attempt = max(run.attempt, entry.attempt)
        if isinstance(entry, journal.State):
            run.state, run.reason, run.code, run.problem = entry.state, entry.reason, entry.code, entry.problem
            run.ended = entry.time if entry.state in states.ENDED else 0.0
        elif isinstance(entry, journal.Queued):
            run.priority, place = entry.priority, entry.place
        elif isinstance(entry, journal.Launched):
            launched, stage, run.started = entry, entry.stage, entry.time
            run.devices = entry.devices
        elif isinstance(entry, journal.Warn):
            warnings.append(entry.message)
        elif isinstance(entry, journal.Exit):
            launched = None
    record = Record(run=run, directory=directory, job=job, offset=offset if summary else 0, stage=stage)
    record.warnings, record.damage, record.place = warnings, damage, place
    run.stage = stage
    labels.read(directory, run, record.warnings.append)
    return record, launched


def read_log_tail(path: Path, limit: int = 65536, begin: int = 0) -> str:
    """The last `limit` bytes of a log from byte `begin` on, as text; empty when there is no log."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin, size - limit))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
