"""Writes folders that are complete or absent, and tells a failed write from any other error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.protocol import attempt_fence
from engine.protocol.home import sync
from engine.protocol.messages import ProblemError
from engine.protocol.text import first_line
from engine.storage import manifest

_PROBE = 1 << 20
"""Bytes that are written to find out whether a disk takes any more."""
_LEAST_FREE = 1 << 26
"""Free bytes below which an error while writing is put down to the disk."""


def write_folder(folder: Path, fill: Callable[[Path], object], facts: dict[str, Any] | None = None) -> None:
    """Create `folder` with the files that `fill` writes, or not at all. With `facts`, a manifest with these is written
    last, and `fill` is called again after an error for which the disk is not to blame.

    Raises OSError when a write failed, whatever exception a library has made of it, and leaves nothing behind then.
    """
    attempt_fence.check()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{attempt_fence.mark()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _fill(temporary, fill, 1 if facts is None else 2)
        if facts is not None:
            manifest.write(temporary, **facts)
        _sync(temporary)
        attempt_fence.check(temporary)
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def _fill(folder: Path, fill: Callable[[Path], object], attempts: int) -> None:
    """Make the folder and call `fill`, `attempts` times at most: space may have been freed before anybody looked."""
    for attempt in range(1, attempts + 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            fill(folder)
            return
        except (OSError, ProblemError):
            raise
        except Exception as error:
            if found := find_failed_write(error, folder):
                raise found from error
            if attempt == attempts:
                raise


def find_failed_write(error: BaseException, folder: Path) -> OSError | None:
    """The failed write behind an exception of a library that was writing into `folder`; None when the disk is well.

    Decided by the OSError that it was raised for, else by the disk itself: whether it is full, or takes no more bytes.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and not isinstance(each, FileNotFoundError):
            return each
    try:
        state = os.statvfs(folder)
        if state.f_bavail * state.f_frsize < _LEAST_FREE or (state.f_files and not state.f_favail):
            return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({first_line(error)})")
        probe = folder / ".probe"
        with probe.open("wb") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as found:
        return found
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Give a complete folder its name. One of an earlier attempt that has it keeps another until then."""
    if not folder.exists():
        temporary.rename(folder)
        return
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    folder.rename(replaced)
    try:
        temporary.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)
