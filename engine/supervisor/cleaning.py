"""What under a home can be removed, why that is safe, and its removal.

Safe is what nothing needs any more: the checkpoints of a completed run that are neither the best nor the newest, cache
entries of prepared rows that no run refers to, and what was left of deleted runs. Everything is looked at again right
before it is removed. Expanded rows (which were paid for), tokenizers and copies of bases in the cache are never listed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.protocol import journal, states
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import CleanItem, CleanQuery, CleanReply, Problem, ProblemError
from engine.supervisor.details import measure_folder
from engine.supervisor.run_record import Record, find_checkpoints

CHECKPOINT, CACHE, DELETED, RESUMABLE = "checkpoint", "cache", "deleted", "resume"
"""Kinds: an intermediate checkpoint, prepared rows, the rest of a deleted run, a checkpoint to resume from."""
RECENT = 24 * 3600.0
"""Seconds for which a cache entry that nothing refers to is left alone: a run may be about to use it."""
_ENTRY = re.compile(r"[0-9a-f]{32}")
_SMALL = 1 << 22
"""Bytes of a file that is looked through for names of entries."""


def answer(home: Home, records: Sequence[Record], message: CleanQuery) -> CleanReply:
    """List, and remove what is asked for. Called in a thread."""
    items = list_items(home, records)
    removed = remove(items, records, message)
    gone = {item.path for item in removed}
    disk = shutil.disk_usage(home.root)
    left = [item for item in items if item.path not in gone]
    return CleanReply(items=left, removed=removed, disk_free=disk.free, disk_total=disk.total)


def list_items(home: Home, records: Sequence[Record]) -> list[CleanItem]:
    """All that can be removed, the largest first. What is not `safe` needs to be asked for."""
    used = _read_profiles(home, records)
    found = [item for record in records for item in _list_checkpoints(record, used)]
    found += [*_list_cache(home, records), *_list_deleted(home)]
    return sorted(found, key=lambda item: -item.bytes)


def _list_checkpoints(record: Record, profiles: str) -> Iterator[CleanItem]:
    run, directory = record.run, record.directory
    if run.state not in states.ENDED or run.pinned:
        return
    steps = directory.checkpoint_steps()
    if not steps:
        return
    named = _list_named(directory)
    best = _find_best(directory)
    for step in steps:
        if step == best or (step == steps[-1] and run.state == states.COMPLETED) or step in named:
            continue
        if f"{run.id}/checkpoints/{directory.checkpoint(step).name}" in profiles or f"{run.id}@{step}" in profiles:
            continue  # the base of another run
        done = run.state == states.COMPLETED
        kind = RESUMABLE if step == steps[-1] or not done else CHECKPOINT
        why = "the run is completed, and this is neither its best nor its newest"
        if not done:
            newest = (
                "its newest, from which a resume goes on" if step == steps[-1] else "an earlier one than its newest"
            )
            why = f"the run is {run.state}, and this is {newest}"
        path = directory.checkpoint(step)
        yield CleanItem(
            path=str(path), kind=kind, run=run.id, step=step, bytes=measure_folder(path), safe=done, why=why
        )


def _read_profiles(home: Home, records: Sequence[Record]) -> str:
    """The profiles of all runs and the user's own: they name checkpoints as bases."""
    own = (home.root / "profiles").glob("*.yaml")
    return "\n".join(_read_small(path) for path in [*(record.directory.profile for record in records), *own])


def _find_best(directory: RunDirectory) -> int | None:
    """The step of the best checkpoint: of several that were marked the last."""
    entries: list[dict[str, Any]] = []
    try:
        for line, _ in journal.read_lines(directory.events, 0):
            if b'"checkpoint"' in line:
                entry = json.loads(line)
                entries.append(entry if isinstance(entry, dict) else {})
    except (OSError, ValueError):
        return -1
    known = find_checkpoints(entries)
    return max((step for step, each in known.items() if each.best), default=None, key=lambda step: known[step].time)


def _list_named(directory: RunDirectory) -> set[int]:
    """Steps that results of later stages name: evaluation and export were made of these."""
    found: set[int] = set()
    for name in ("trained.json", "evaluated.json", "exported.json", "report.json"):
        text = _read_small(directory.path / name)
        found |= {int(step) for step in re.findall(r"step-(\d{8})", text)}
        found |= {int(step) for step in re.findall(r'"(?:step|best_step|checkpoint)": ?(\d+)', text)}
    return found


def _list_cache(home: Home, records: Sequence[Record]) -> Iterator[CleanItem]:
    if not home.cache.is_dir():
        return
    used = _find_used(home, records)
    for path in home.cache.iterdir():
        if not _ENTRY.fullmatch(path.name) or not path.is_dir() or path.is_symlink() or path.name in used:
            continue
        recent = time.time() - _find_last_use(path) < RECENT
        why = "no run refers to these prepared rows; they are made again when they are needed"
        why = "no run refers to these prepared rows, but they were used within a day" if recent else why
        yield CleanItem(path=str(path), kind=CACHE, bytes=measure_folder(path), safe=not recent, why=why)


def _find_last_use(folder: Path) -> float:
    """When a file of the folder was last read or written. That of the folder itself changes when it is listed."""
    latest = 0.0
    for path in [folder, *folder.iterdir()]:
        with contextlib.suppress(OSError):
            status = path.stat()
            latest = max(latest, status.st_mtime, status.st_atime if path != folder else 0.0)
    return latest


def _find_used(home: Home, records: Sequence[Record]) -> set[str]:
    """Names of entries that anything refers to: files of runs and of the home's own folders, and other entries of
    these."""
    used: set[str] = set()
    places = [record.directory.path for record in records]
    places += [path for path in home.runs.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for place in dict.fromkeys(places):
        files = [path for pattern in ("*.json", "*.yaml", "*.jsonl") for path in place.glob(pattern)]
        files += [path for pattern in ("*.json", "trainer/*.json") for path in place.glob(f"checkpoints/*/{pattern}")]
        for path in files:
            used |= set(_ENTRY.findall(_read_small(path)))
    for path in home.cache.glob("expand*/*.json"):
        used |= set(_ENTRY.findall(_read_small(path)))
    waiting = list(used)
    while waiting:  # an entry may name those that it was made from
        for path in (home.cache / waiting.pop()).glob("*.json"):
            more = set(_ENTRY.findall(_read_small(path))) - used
            used |= more
            waiting += more
    return used


def _list_deleted(home: Home) -> Iterator[CleanItem]:
    for path in home.runs.glob(".deleted-*"):
        if path.is_dir() and not path.is_symlink():
            why = "the run was deleted, and not all of its files could be removed then"
            yield CleanItem(path=str(path), kind=DELETED, bytes=measure_folder(path), safe=True, why=why)


def _read_small(path: Path) -> str:
    """The beginning of a text; of a journal, that is where it names its rows."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(_SMALL).decode("utf-8", "replace")
    except OSError:
        return ""


def remove(items: Sequence[CleanItem], records: Sequence[Record], message: CleanQuery) -> list[CleanItem]:
    """Remove those of the items that are asked for. Raises ProblemError for one that is not listed (any more), or not
    safe, before anything is removed; returns what was removed."""
    known = {item.path: item for item in items}
    for path in message.remove:
        item = known.get(path)
        if item is None or not (item.safe or message.unsafe):
            raise ProblemError(
                Problem(
                    code="clean.refused",
                    title=f"{path} is not removed",
                    cause=item.why if item else "it is in use, or is not there any more",
                    hint="list again what can be removed: cockpit clean",
                )
            )
    by_id = {record.run.id: record for record in records}
    removed = []
    for path in dict.fromkeys(message.remove):
        item, folder = known[path], Path(path)
        if item.run and by_id[item.run].run.state not in states.ENDED:
            continue  # resumed meanwhile
        aside = folder if item.kind == DELETED else folder.with_name(f".removed-{folder.name}")
        try:
            if aside != folder:
                folder.rename(aside)  # at once: nobody ever sees a half
        except OSError:
            continue
        shutil.rmtree(aside, ignore_errors=True)
        removed.append(item)
    return removed
