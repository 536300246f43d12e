"""Reads what a run's directory says about the run, whatever state its files are in.

A file that is missing, truncated, garbled or a directory costs its own run something, and no other anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.protocol import journal, stages, states
from engine.protocol.home import RunDirectory, host_name
from engine.protocol.messages import Problem, Run
from engine.supervisor.run_record import Job, Record, replay

_LATEST = 1e11
_TRACES = ("events.jsonl", "lifecycle.jsonl", "log.txt", "checkpoints")
"""Files of which a run that has been queued has one at least."""


def list_directories(runs: Path) -> Iterator[RunDirectory]:
    """The directories of runs, by name. Hidden ones and files are none."""
    for path in sorted(runs.iterdir()):
        if not path.name.startswith(".") and path.is_dir():
            yield RunDirectory(path)


def read_record(
    directory: RunDirectory, indexed: tuple[Run, int] | None
) -> tuple[Record, journal.Launched | None] | None:
    """The record of the run in a directory, and the last launch without an exit after it; None for a directory that is
    no run, or one that was being made when the host stopped. `indexed` is what the registry has of it."""
    job, damage = _read_job(directory)
    if job is None:
        return None
    run_id = escape_name(directory.id)
    summary, offset = indexed or (None, 0)
    if summary is not None:
        summary = msgspec.structs.replace(summary, metrics=dict(summary.metrics))
        if (size := _size(directory.events)) < offset:
            damage.append(f"events.jsonl has {size} bytes, of {offset} that were read before")
            summary, offset = None, 0
    damage += [
        f"{path.name} is not a file"
        for path in (directory.events, directory.lifecycle, directory.profile)
        if path.exists() and not path.is_file()
    ]
    record, launched = replay(directory, job, summary, offset)
    record.run.id, record.run.directory = run_id, escape_name(str(directory.path))
    if run_id != directory.id:
        damage.append("the name of its folder is not UTF-8")
    found, record.damage = [*damage, *record.damage], []
    for text in found:
        record.note_damage(text)
    return record, launched


def _read_job(directory: RunDirectory) -> tuple[Job | None, list[str]]:
    """The content of `job.json`, or what can be put in its place, and what is wrong with it."""
    path = directory.path / "job.json"
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        job = msgspec.json.decode(path.read_bytes(), type=Job)
        if not 0 <= job.created < _LATEST:
            raise ValueError("its time is out of range")
        job.name.encode(), job.source.encode(), job.directory.encode()
        return job, []
    except FileNotFoundError:
        if not any((directory.path / name).exists() for name in _TRACES):
            return None, []
        reason = "is missing"
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or str(error)[:200]})"
    made = min(max(0.0, directory.path.stat().st_mtime), time.time())
    job = Job(kind="train", name=escape_name(directory.id), source="", directory="/",
              output="", host=host_name(), created=made)  # fmt: skip
    return job, [f"job.json {reason}"]


def read_problem(path: Path) -> Problem | None:
    """A problem in a file of its own; None when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Problem)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None


def escape_name(name: str) -> str:
    """A file's name as text that can be sent: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


# ── a lifecycle that does not say how the run stands ──────────────────────────────────────────────────────────────────


@dataclass
class Evidence:
    """What the worker's journal and the results say about the run."""

    attempt: int = 0
    """The newest attempt that has begun to train."""
    end: journal.End | None = None
    touched: bool = False
    """Whether any worker has left anything."""


def gather_evidence(directory: RunDirectory) -> Evidence:
    found = Evidence(
        touched=any((directory.path / name).exists() for name in ("log.txt", "checkpoints", "trained.json"))
    )
    try:
        for line, _ in journal.read_lines(directory.events):
            found.touched = True
            if b'"kind":"metrics"' in line[:200]:
                continue
            entry = journal.decode(line)
            if isinstance(entry, journal.Start):
                found.attempt, found.end = max(found.attempt, entry.attempt), None
            elif isinstance(entry, journal.End):
                found.attempt, found.end = max(found.attempt, entry.attempt), entry
    except OSError:
        found.touched = True
    return found


def settle(record: Record) -> bool:
    """Give a run the state that its other files prove, where its lifecycle has none, or has lost its end. True when it
    did: such a run is never started by itself."""
    run = record.run
    if run.state not in ("", states.QUEUED, states.PREPARING) or record.stage == stages.TRAIN:
        return False
    evidence = gather_evidence(record.directory)
    begun = evidence.touched if run.state == "" else evidence.attempt >= max(run.attempt, 1)
    if not begun and not record.damage:
        return False
    if not record.damage:
        name = record.directory.lifecycle.name
        missing = not record.directory.lifecycle.exists()
        record.note_damage(f"{name} {'is missing' if missing else 'ends before the run did'}")
    run.attempt = max(run.attempt, evidence.attempt)
    if _is_complete(record, evidence):
        record.settle(states.COMPLETED, "its lifecycle is damaged; its results are whole", None)
    else:
        problem = Problem(
            code="run.damaged",
            title=f"{run.id} is damaged",
            cause="; ".join(record.damage),
            hint=f"`cockpit resume {run.id}` continues from its newest checkpoint, `cockpit delete {run.id}` removes "
            "the run",
        )
        record.settle(states.LOST, f"damaged: {record.damage[0]}", problem)
    return True


def _is_complete(record: Record, evidence: Evidence) -> bool:
    end, directory = evidence.end, record.directory
    if end is None or end.status != "completed" or not directory.result(stages.TRAIN).is_file():
        return False
    later = [stage for stage in record.run.stages if stage in stages.AFTER]
    return all(directory.result(stage).is_file() for stage in later)
