"""The cache of prepared data: entries named by a hash of all that they were made from, present only when complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from engine.protocol.home import Home, host_name, sync
from engine.protocol.messages import ProblemError

_WORK = "work-"
_GIVEN_UP = 14 * 24 * 3600.0
"""Seconds."""
VERSION = 2
"""Counts changes of what is written or of how rows become tokens: an older entry is then no hit."""
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


def entry_key(files: Mapping[str, Path], settings: Mapping[str, Any], progress: Callable[[int], object]) -> str:
    """The hash of the files' bytes, by role, and the settings. `progress` is told the bytes read so far."""
    return entry_name(file_digests(files, progress), settings)


def entry_name(digests: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """What an entry is called: the hash of everything that it is made from."""
    told = json.dumps({"version": VERSION, "files": digests, "settings": settings}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def file_digests(files: Mapping[str, Path], progress: Callable[[int], object]) -> dict[str, str]:
    """Role -> SHA-256 of the file's bytes. `progress` is told the bytes read so far."""
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


@contextmanager
def new_entry(home: Home, name: str) -> Iterator[Path]:
    """A folder to fill; it becomes the entry `name` when the block ends well, and nothing is left when it does not."""
    home.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_unfinished(home.cache)
    temporary = home.cache / f".{name}.{host_name()}.{os.getpid()}"
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        try:
            temporary.rename(home.cache / name)
        except OSError:
            if not (home.cache / name).is_dir():
                raise
            # Another process finished the same entry meanwhile: theirs is as good.
        sync(home.cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def work_folder(home: Home, name: str) -> Iterator[Path]:
    """A folder in which an entry is made, step by step: what a killed process has left there is used by the next one.

    One process at a time has it; another waits. It is removed when the block ends well or with a user's mistake (ValueError, ProblemError),
    and kept for the next attempt when the block is interrupted or the disk is full. Those that nobody has touched for two weeks go.
    """
    home.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_abandoned(home.cache)
    folder = home.cache / f"{_WORK}{name}"
    with _lock_folder(folder):
        try:
            yield folder
        except (ValueError, ProblemError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def permanent_folder(home: Home, name: str) -> Iterator[Path]:
    """A folder for what must not be made twice, because it was paid for: it stays however the block ends. One process at a time has it."""
    home.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock_folder(home.cache / name):
        yield home.cache / name


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold it; the kernel lets go of it however this process ends."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever had it may have removed it while this process waited.
            if folder.is_dir() and folder.stat().st_ino == os.fstat(descriptor).st_ino:
                yield
                return
        finally:
            os.close(descriptor)


def _remove_abandoned(cache: Path) -> None:
    """Remove workshops that were given up."""
    for folder in cache.glob(f"{_WORK}*"):
        try:
            touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - touched > _GIVEN_UP:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue  # another process has just done with it


def _remove_unfinished(cache: Path) -> None:
    """Remove what killed processes of this host have left half written."""
    for path in cache.glob(f".*.{host_name()}.*"):
        pid = re.fullmatch(r".*\.(\d+)", path.name)
        if pid and not psutil.pid_exists(int(pid[1])):
            shutil.rmtree(path, ignore_errors=True)
