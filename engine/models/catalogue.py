"""Models that have a name of their own, and how each is made present in COCKPIT_HOME/models."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.models import embedded
from engine.models.embedded import Progress
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError


@dataclass(frozen=True)
class Entry:
    fetch: Callable[[Path, Progress], None]
    """Fills an empty folder. Raises ProblemError."""
    tensors_sha256: str
    """`weights.digest` of the folder's safetensors."""
    disk: int
    """Bytes needed while fetching, the largest moment."""
    description: str


CATALOGUE: dict[str, Entry] = {
    embedded.NAME: Entry(
        embedded.fetch, embedded.TENSORS_SHA256, 800_000_000, "SmolLM2 135M Instruct (Apache-2.0), 270 MB in bfloat16"
    ),
}


def pull(name: str, home: Home, progress: Progress) -> Path:
    """Make a catalogue model present and return its folder; at once when it is there already.

    Complete or absent: it is built under a temporary name and renamed. Two pulls at once take turns. Raises
    ProblemError.
    """
    entry = CATALOGUE[name]
    home.create()
    return build_folder(home.models / name, entry.disk, lambda partial: entry.fetch(partial, progress))


def build_folder(folder: Path, needed: int, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled under a temporary name when it is not there, which takes `needed` bytes of disk. Raises
    ProblemError."""
    if folder.is_dir():
        return folder
    with _hold_lock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            return folder
        _check_disk(folder.parent, folder.name, needed)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed pull left; nobody else is at it, we hold the lock
        partial.mkdir()
        try:
            fill(partial)
            _sync(partial)
            partial.rename(folder)
            _sync_directory(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def _hold_lock(lock: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it however this process ends."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_disk(folder: Path, name: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ProblemError(
            Problem(
                title=f"Too little disk for {name}",
                cause=f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed meanwhile",
                hint="free some space, or choose another place with --home or COCKPIT_HOME",
            )
        )


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
