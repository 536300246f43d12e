"""Describes one run in full, as far as its files can be read, and what keeps the engine from working as usual."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.protocol import file_channel, journal, states
from engine.protocol.home import Home
from engine.protocol.messages import AttemptEnd, CheckpointInfo, LedgerLine, Rank, Run, RunDetail, Telemetry
from engine.supervisor.registry import Registry
from engine.supervisor.run_files import escape_name
from engine.supervisor.run_record import Record, find_checkpoints

T = TypeVar("T")
SHOWN_ENTRIES = 400
"""The most journal entries that `show` returns."""


def describe_run(registry: Registry, record: Record, run: Run, ranks: list[Rank], pids: list[int]) -> RunDetail:
    """Everything that is known of the run. Called in the registry's thread, with the `run` of that moment."""
    entries = registry.read_entries(run.id, SHOWN_ENTRIES)
    facts = next((entry.get("facts") for entry in reversed(entries) if entry["kind"] == "start"), None)
    return RunDetail(
        run=run,
        profile_text=_read_profile(record),
        checkpoints=_list_checkpoints(record, entries),
        pids=pids,
        ranks=ranks,
        ledger=_convert(registry.read_ledger(run.id), LedgerLine),
        warnings=[*_list_warnings(entries), *record.warnings, *record.damage],
        told=entries,
        facts=facts if isinstance(facts, dict) else {},
        attempts=_list_attempts(record),
        hosts=_list_hosts(record, run),
    )


def _list_hosts(record: Record, run: Run) -> list[Telemetry]:
    """Samples of the other hosts that the run is on, while it is."""
    return file_channel.read_hosts(record.directory.control) if record.files and run.state in states.STARTED else []


def _read_profile(record: Record) -> str:
    """The text of the run's profile, as far as it can be read."""
    path = record.directory.profile
    if not path.is_file():
        return f"# {path.name} is {'not a file' if path.exists() else 'missing'}\n"
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"# {path.name} cannot be read: {error.strerror}\n"


def _convert(entries: list[dict[str, Any]], kind: type[T]) -> list[T]:
    """The entries of this kind; one that lacks a field is left out."""
    found = []
    for entry in entries:
        with contextlib.suppress(msgspec.ValidationError):
            found.append(msgspec.convert(entry, kind))
    return found


def _list_warnings(entries: list[dict[str, Any]]) -> list[str]:
    return [str(entry.get("message", "")) for entry in entries if entry["kind"] == "warning"]


def _list_checkpoints(record: Record, entries: list[dict[str, Any]]) -> list[CheckpointInfo]:
    """The checkpoints on disk by ascending step, with the metrics that the journal has. Only the last one marked as
    best is the best."""
    known = find_checkpoints(entries)
    best = max((step for step, entry in known.items() if entry.best), default=None, key=lambda step: known[step].time)
    return [
        CheckpointInfo(
            step=step,
            path=escape_name(str(record.directory.checkpoint(step))),
            metrics=known[step].metrics if step in known else {},
            best=step == best,
            bytes=_measure_checkpoint(record.directory.checkpoint(step)),
        )
        for step in record.directory.checkpoint_steps()
    ]


def _list_attempts(record: Record) -> list[AttemptEnd]:
    """How the attempts before the present one ended."""
    try:
        entries = [entry for entry, _ in journal.read(record.directory.lifecycle)]
    except OSError:
        return []
    return [
        AttemptEnd(
            attempt=entry.attempt,
            state=entry.state,
            step=entry.step or 0,
            time=entry.time,
            reason=entry.reason,
            code=entry.code,
            problem=entry.problem,
        )
        for entry in entries
        if isinstance(entry, journal.State) and entry.state in states.ENDED and entry.attempt < record.run.attempt
    ]


def _measure_checkpoint(folder: Path) -> int:
    """Bytes of a complete checkpoint, which does not change: it is measured once."""
    try:
        status = folder.stat()
    except OSError:
        return 0
    return _measure_once(folder, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _measure_once(folder: Path, inode: int, changed: int) -> int:
    return measure_folder(folder)


def measure_folder(folder: Path) -> int:
    """Bytes that the files below a folder take. What vanishes or cannot be read meanwhile counts as nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def list_notes(home: Home, registry: Registry) -> list[str]:
    """What keeps this engine from working as usual."""
    notes = []
    if registry.in_memory:
        notes.append(f"{home.registry} cannot be written: curves are kept in memory")
    try:
        with tempfile.TemporaryFile(dir=home.engine) as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        notes.append(f"{home.root} cannot be written ({error.strerror}): runs can be looked at, not started")
    return notes
