"""The cache of prepared data. An entry is named by a hash of everything that it was made from, and exists only when
complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from engine.protocol.home import Home, host_name, make_private, restrict, sync, write_private
from engine.protocol.messages import ProblemError
from engine.storage import manifest

_WORK = "work-"
_ABANDONED = 14 * 24 * 3600.0
"""Seconds after which an untouched work folder is removed."""
VERSION = 4
"""Increased when the content of entries or the way rows become tokens changes, so that older entries are not reused."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "ice_text.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_REMEMBERED = 10_000
"""Files whose digests are remembered."""
_NAMED_TEMPLATES = "additional_chat_templates"
"""The folder of the templates besides `default`, where a tokenizer has several."""


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of the tokenizer in a folder, by their names below it."""
    named = [path.relative_to(folder).as_posix() for path in sorted((folder / _NAMED_TEMPLATES).glob("*.jinja"))]
    return {name: folder / name for name in (*TOKENIZER_FILES, *named) if (folder / name).is_file()}


def entry_key(files: Mapping[str, Path], settings: Mapping[str, Any], progress: Callable[[int], object]) -> str:
    """A hash of the files' bytes, by role, and of the settings. `progress` gets the bytes read so far."""
    return entry_name(file_digests(files, progress), settings)


def entry_name(digests: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """The name of an entry: a hash of everything that it is made from."""
    content = json.dumps({"version": VERSION, "files": digests, "settings": settings}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def file_digests(files: Mapping[str, Path], progress: Callable[[int], object]) -> dict[str, str]:
    """Role -> SHA-256 of the file's bytes. `progress` gets the bytes read so far."""
    done = 0
    found = {}
    for role, path in files.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
                done += len(chunk)
                progress(done)
        found[role] = digest.hexdigest()
    return found


def remember_digests(home: Home, files: Mapping[str, Path]) -> dict[str, str]:
    """As `file_digests`; a file of the size and time of change that it had is not read again."""
    memory = home.root / "forecasts" / "digests.json"
    try:
        known = json.loads(memory.read_bytes())
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    found: dict[str, str] = {}
    now: dict[str, list[Any]] = {}
    for role, path in files.items():
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        *before, digest = known.get(str(path)) or [""]
        if before != state:
            digest = file_digests({role: path}, lambda _: None)[role]
        found[role] = digest
        now[str(path)] = [*state, digest]
    try:
        kept = {name: each for name, each in known.items() if name not in now}
        latest = dict([*kept.items(), *now.items()][-_REMEMBERED:])
        write_private(make_private(memory.parent) / memory.name, json.dumps(latest).encode())
    except OSError:
        pass
    return found


@contextmanager
def new_entry(home: Home, name: str) -> Iterator[Path]:
    """A folder to fill. It becomes the entry `name` if the block succeeds, and is removed if it fails."""
    make_private(home.cache)
    _remove_unfinished(home.cache)
    temporary = home.cache / f".{name}.{host_name()}.{os.getpid()}"
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        manifest.write(temporary)
        restrict(temporary)
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        try:
            temporary.rename(home.cache / name)
        except OSError:
            if not (home.cache / name).is_dir():
                raise
            # Another process has finished the same entry meanwhile.
        else:
            stamp_entry(home.cache / name)
        sync(home.cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_entry(home: Home, name: str, damaged: list[str] | None = None) -> Path | None:
    """The entry `name` when it is there and whole, else None: one with a damaged file is removed, so that it is made
    again, and `damaged` is told.

    The hash of each file is compared with that of when it was written, once until the file is touched. The work folder
    of a whole entry is removed, which a process leaves that is killed when it has just finished.
    """
    folder = home.cache / name
    if not folder.is_dir():
        return None
    wrong = find_damage(folder)
    if not wrong:
        _remove_leftover_work(home, name)
        return folder
    print(f"{folder}: {wrong}; it is made again", flush=True)
    if damaged is not None:
        damaged.append(f"{name}: {wrong}")
    _remove(folder)
    return None


def find_damage(folder: Path) -> str:
    """What is wrong with an entry; empty for a whole one, and for one of an older version."""
    return manifest.find_damage(folder, stamps=_stamps_of(folder))


def stamp_entry(folder: Path) -> None:
    """Note that an entry has just been written; again when links to its files have been removed, which touches them."""
    manifest.stamp(folder, _stamps_of(folder))


def _stamps_of(folder: Path) -> Path:
    return folder.with_name(f".checked-{folder.name}.json")


@contextmanager
def work_folder(home: Home, name: str) -> Iterator[Path]:
    """A folder for the intermediate files of an entry, in which the next process continues after a kill.

    One process at a time holds it; others wait. It is removed if the block succeeds or fails with ValueError or
    ProblemError, and kept for the next attempt if the block is interrupted or the disk is full. Folders untouched for
    two weeks are removed.
    """
    make_private(home.cache)
    _remove_unfinished(home.cache)
    _remove_abandoned(home.cache)
    folder = home.cache / f"{_WORK}{name}"
    with _lock_folder(folder):
        try:
            yield folder
        except (ValueError, ProblemError):
            _remove(folder)
            raise
        _remove(folder)


@contextmanager
def permanent_folder(home: Home, name: str) -> Iterator[Path]:
    """A folder for results that must not be repeated because they were paid for: it is kept even if the block fails.
    One process at a time holds it."""
    make_private(home.cache)
    with _lock_folder(home.cache / name):
        yield home.cache / name


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder and lock it; the kernel releases the lock however this process ends."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The previous holder may have removed it while this process waited.
            if folder.is_dir() and folder.stat().st_ino == os.fstat(descriptor).st_ino:
                yield
                return
        finally:
            os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder under another name first: one that is half removed when this process is killed must not be taken
    for a whole one. A process that has its files open keeps them."""
    aside = folder.with_name(f".{folder.name}.{host_name()}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_leftover_work(home: Home, name: str) -> None:
    """Remove the work folder of an entry that exists, unless a process holds it, and what killed processes left."""
    _remove_unfinished(home.cache)
    folder = home.cache / f"{_WORK}{name}"
    with suppress(OSError):  # there is none, or it is held
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        finally:
            os.close(descriptor)


def _remove_abandoned(cache: Path) -> None:
    """Remove abandoned work folders."""
    for folder in cache.glob(f"{_WORK}*"):
        try:
            touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - touched > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue  # another process has just removed it


def _remove_unfinished(cache: Path) -> None:
    """Remove incomplete entries that killed processes of this host have left."""
    for path in cache.glob(f".*.{host_name()}.*"):
        pid = re.fullmatch(r".*\.(\d+)", path.name)
        if pid and not psutil.pid_exists(int(pid[1])):
            shutil.rmtree(path, ignore_errors=True)
