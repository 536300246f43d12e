"""The fence around a run's directory: processes of an earlier attempt write nothing there any more.

A process that was stopped (SIGSTOP, a suspended machine, a cable that was cut) may wake up when the run goes on
elsewhere. So the run's directory names its newest attempt, in a file that only ever grows. Whoever starts an attempt
writes it, and a process of the run reads it right before each write: before an entry of the journal, and before
something that was written under a temporary name gets its own. A process that finds a later attempt ends at once.

Between the look and the write nothing is done, but a file system has no way to do both in one: a process that is
stopped between these two system calls writes once more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

FILE = "attempt"
STATUS = 5
"""Exit status of a process that has found a later attempt."""
MOST = 99_999
"""The largest number that is taken for an attempt: a larger one is damage."""

_held: tuple[Path, int] | None = None


def read(run: Path) -> int:
    """The newest attempt of a run, by the file in its directory; 0 where there is none that can be read, and for a
    directory or a pipe in its place."""
    try:
        descriptor = os.open(run / FILE, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = int(os.read(descriptor, 32))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return 0
    return found if 0 < found <= MOST else 0


def claim(run: Path, attempt: int) -> bool:
    """Note that this attempt begins; False when a later one has begun. A full disk does not take the note, and raises
    nothing: it would take no other attempt's files either."""
    newest = read(run)
    if newest < attempt:
        temporary = run / f".{FILE}.{attempt}.{os.getpid()}"
        try:
            temporary.write_bytes(b"%d" % attempt)
            temporary.replace(run / FILE)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return newest <= attempt


def hold(run: Path, attempt: int) -> None:
    """Make this process one of an attempt: from now on `check` ends it when a later one has begun. If one has begun
    already, as when an old batch script is submitted again, the process says so and ends now."""
    global _held
    if not claim(run, attempt):
        with contextlib.suppress(OSError):
            os.write(2, f"attempt {attempt} of {run.name}: attempt {read(run)} has begun, so this one ends\n".encode())
        os._exit(STATUS)
    _held = run, attempt


def check(leftover: Path | None = None) -> None:
    """End this process, without a word, when a later attempt than its own has begun. `leftover` is what it has written
    under a temporary name, which is removed. Cheap; nothing in a process that is no run's."""
    if _held is None or read(_held[0]) <= _held[1]:
        return
    if leftover is not None and leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    elif leftover is not None:
        with contextlib.suppress(OSError):  # this process must not live on for that
            leftover.unlink(missing_ok=True)
    os._exit(STATUS)


def mark() -> str:
    """What tells this process's temporary names from those of other attempts, whose processes may be another host's
    with the same number. It ends with a dot and the process's number, by which an export finds what others left."""
    return str(os.getpid()) if _held is None else f"{_held[1]}.{os.getpid()}"
