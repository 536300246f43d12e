"""What under a home can be removed, why that is safe, and its removal.

Safe is what nothing needs any more: the checkpoints of a completed run that are neither the best nor the newest, cache
entries of prepared rows that no run refers to, and what was left of deleted runs. It is looked at again right before it
is removed: measuring a large home takes minutes. Expanded rows (which were paid for), tokenizers and copies of bases in
the cache are never listed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from engine.protocol import journal, states
from engine.protocol.home import Home, RunDirectory, host_name
from engine.protocol.messages import CleanItem, CleanQuery, CleanReply, Problem, ProblemError
from engine.supervisor import labels
from engine.supervisor.details import measure_folder
from engine.supervisor.run_record import Record

CHECKPOINT, CACHE, DELETED, RESUMABLE = "checkpoint", "cache", "deleted", "resume"
"""Kinds: an intermediate checkpoint, prepared rows, the rest of a deleted run, a checkpoint to resume from."""
RECENT = 24 * 3600.0
"""Seconds for which a cache entry that nothing refers to is left alone: a run may be about to use it."""
_ENTRY = re.compile(r"[0-9a-f]{32}")
_LABEL = re.compile(r"([\w.-]+)@(\d{1,9})\b")
_PATH = re.compile(r"([^\s/]+)/checkpoints/step-(\d{8})")
"""A checkpoint by its run and step, where the run may be the beginning of an id or `last`; and by its path."""
_SMALL = 1 << 22
"""Bytes of a file that is looked through for names of entries."""

Records = Mapping[str, Record]
"""The engine's own mapping, which changes while it is looked at."""
Names = Collection[tuple[str, int]]
"""Checkpoints that something names: a run, or the beginning of its id, and a step."""


def answer(home: Home, records: Records, message: CleanQuery, in_use: Sequence[str] = ()) -> CleanReply:
    """List, and remove what is asked for. `in_use` are the targets of services. Called in a thread."""
    items = list_items(home, records, in_use)
    removed = remove(home, items, records, message, in_use)
    gone = {item.path for item in removed}
    disk = shutil.disk_usage(home.root)
    left = [item for item in items if item.path not in gone]
    return CleanReply(items=left, removed=removed, disk_free=disk.free, disk_total=disk.total)


def list_items(home: Home, records: Records, in_use: Sequence[str] = ()) -> list[CleanItem]:
    """All that can be removed, the largest first. What is not `safe` needs to be asked for."""
    named = _read_names(home, records, in_use)
    found: list[CleanItem] = []
    for record in list(records.values()):
        with contextlib.suppress(OSError):  # the run is being deleted
            found += _list_checkpoints(record, named)
    found += [*_list_cache(home, records), *_list_deleted(home)]
    measured = [msgspec.structs.replace(item, bytes=measure_folder(Path(item.path))) for item in found]
    return sorted(measured, key=lambda item: -item.bytes)


def _list_checkpoints(record: Record, named: Names) -> Iterator[CleanItem]:
    run, directory = record.run, record.directory
    state = _read_state(record)
    if state not in states.ENDED or _is_pinned(record):
        return
    for path in directory.checkpoints.glob(".step-*.removed"):
        why = "this checkpoint was removed before, and not all of its files could be"
        yield CleanItem(path=str(path), kind=DELETED, why=why)
    steps = directory.checkpoint_steps()
    if not steps:
        return
    kept = _list_named(directory) | {step for name, step in named if name == "last" or run.id.startswith(name)}
    best, known = _find_best(directory, steps)
    done = state == states.COMPLETED
    for step in steps:
        if step == best or (step == steps[-1] and done) or step in kept:
            continue
        kind = CHECKPOINT if done else RESUMABLE
        why = "the run is completed, and this is neither its best nor its newest"
        if not done:
            newest = (
                "its newest, from which a resume goes on" if step == steps[-1] else "an earlier one than its newest"
            )
            why = f"the run is {state}, and this is {newest}"
        elif not known:
            why = "the run is completed, but its journal cannot be read: this may be its best"
        yield CleanItem(
            path=str(directory.checkpoint(step)), kind=kind, run=run.id, step=step, safe=done and known, why=why
        )


def _read_state(record: Record) -> str:
    """The run's state. Another host's is that in its journal: this engine does not see that host resume it."""
    if record.job.host == host_name():
        return record.run.state
    return _read_last_state(record.directory)


def _read_last_state(directory: RunDirectory) -> str:
    try:
        entries = [entry for entry, _ in journal.read(directory.lifecycle)]
    except OSError:
        return ""
    return next((entry.state for entry in reversed(entries) if isinstance(entry, journal.State)), "")


def _is_pinned(record: Record) -> bool:
    """Whether the run is pinned, or may be: its labels cannot be read."""
    try:
        return record.run.pinned or labels.load(record.directory).pinned
    except (OSError, msgspec.MsgspecError):
        return True


def _read_names(home: Home, records: Records, in_use: Sequence[str]) -> Names:
    """What the profiles of all runs and the user's own name as bases, and what services use."""
    own = (home.root / "profiles").glob("*.yaml")
    profiles = [record.directory.profile for record in list(records.values())]
    texts = [*in_use, *map(_read_small, [*profiles, *own])]
    return {(name, int(step)) for text in texts for each in (_LABEL, _PATH) for name, step in each.findall(text)}


def _find_best(directory: RunDirectory, steps: Sequence[int]) -> tuple[int | None, bool]:
    """The step that a run's name alone stands for (see `models.targets`): the latest that was marked as best and still
    exists; and whether the journal could be read."""
    best, known = None, directory.events.is_file()
    try:
        for line, _ in journal.read_lines(directory.events):
            if b'"checkpoint"' not in line:
                continue
            entry = journal.decode(line)
            if isinstance(entry, journal.Checkpoint) and entry.best and entry.step in steps:
                best = entry.step
            known = known and not (isinstance(entry, journal.Unknown) and entry.damaged)
    except OSError:
        known = False
    return best, known


def _list_named(directory: RunDirectory) -> set[int]:
    """Steps that results of later stages name: evaluation and export were made of these."""
    found: set[int] = set()
    for name in ("trained.json", "evaluated.json", "exported.json", "report.json"):
        text = _read_small(directory.path / name)
        found |= {int(step) for step in re.findall(r"step-(\d{8})", text)}
        found |= {int(step) for step in re.findall(r'"(?:step|best_step|checkpoint)": ?(\d+)', text)}
    return found


def _list_cache(home: Home, records: Records) -> Iterator[CleanItem]:
    if not home.cache.is_dir():
        return
    used, preparing = _find_used(home, records), _find_preparing(home)
    for path in home.cache.iterdir():
        if not _ENTRY.fullmatch(path.name) or not path.is_dir() or path.is_symlink() or path.name in used:
            continue
        recent = time.time() - _find_last_use(path) < RECENT
        why = "no run refers to these prepared rows; they are made again when they are needed"
        why = "no run refers to these prepared rows, but they were used within a day" if recent else why
        why = f"no run refers to these prepared rows, but {preparing} has not chosen its rows yet" if preparing else why
        yield CleanItem(path=str(path), kind=CACHE, safe=not recent and not preparing, why=why)


def _find_preparing(home: Home) -> str:
    """A run, of any host, that is to prepare its rows, from an entry perhaps. Empty for none."""
    for path in home.runs.iterdir():
        directory = RunDirectory(path)
        if path.name.startswith(".") or not path.is_dir() or directory.prepared.is_file():
            continue
        if _read_last_state(directory) in states.LIVE:
            return directory.id
    return ""


def _find_last_use(folder: Path) -> float:
    """When a file of the folder was last read or written. That of the folder itself changes when it is listed."""
    latest = 0.0
    try:
        for path in [folder, *folder.iterdir()]:
            status = path.stat()
            latest = max(latest, status.st_mtime, status.st_atime if path != folder else 0.0)
    except OSError:  # somebody changes it now
        return time.time()
    return latest


def _find_used(home: Home, records: Records) -> set[str]:
    """Names of entries that anything refers to: files of runs and of the home's own folders, and other entries of
    these."""
    used: set[str] = set()
    places = [record.directory.path for record in list(records.values())]
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
            yield CleanItem(path=str(path), kind=DELETED, why=why)


def _read_small(path: Path) -> str:
    """The beginning of a text; of a journal, that is where it names its rows."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(_SMALL).decode("utf-8", "replace")
    except OSError:
        return ""


def remove(
    home: Home, items: Sequence[CleanItem], records: Records, message: CleanQuery, in_use: Sequence[str] = ()
) -> list[CleanItem]:
    """Remove those of the items that are asked for. Raises ProblemError for one that is not listed (any more), or not
    safe, before anything is removed; returns what was removed, which leaves out what has come into use meanwhile."""
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
    chosen = [known[path] for path in dict.fromkeys(message.remove)]
    removed = []
    for (kind, run), group in groupby(sorted(chosen, key=_group), _group):
        still: set[str] = set()
        with contextlib.suppress(OSError):  # the run is being deleted
            again = [] if kind == DELETED else list(_list_again(home, records, run, in_use))
            still = {each.path for each in again if each.safe or message.unsafe}
        for item in group:
            if kind == DELETED or (item.path in still and not _has_begun(home, records, item)):
                removed += [item] if _remove_folder(item) else []
    return removed


def _group(item: CleanItem) -> tuple[str, str]:
    """Items of one kind and run are looked at again together."""
    return item.kind, item.run


def _list_again(home: Home, records: Records, run: str, in_use: Sequence[str]) -> Iterator[CleanItem]:
    """What can be removed now of this run or, without one, of the cache."""
    if not run:
        yield from _list_cache(home, records)
    elif run in records:
        yield from _list_checkpoints(records[run], _read_names(home, records, in_use))


def _has_begun(home: Home, records: Records, item: CleanItem) -> bool:
    """Whether the item's run was resumed, or a run began to prepare its rows, while others were being removed."""
    if item.kind == CACHE:
        return bool(item.safe and _find_preparing(home))
    record = records.get(item.run)
    return record is None or _read_state(record) not in states.ENDED


def _remove_folder(item: CleanItem) -> bool:
    """Rename the folder, so that nobody ever sees a half, and remove it. Returns whether all of it has gone; the rest
    has a name by which it is removed later."""
    folder = Path(item.path)
    name = f".{folder.name}.{host_name()}.{os.getpid()}" if item.kind == CACHE else f".{folder.name}.removed"
    aside = folder if item.kind == DELETED else folder.with_name(name)
    try:
        if aside != folder:
            folder.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return not os.path.lexists(aside)
