"""Which process a record means: its pid, and when it was started.

The kernel counts the start of a process in clock ticks since the host was started (`/proc/PID/stat`, field 22), and
gives each start of the host an id. Neither moves when somebody sets the clock, as a time in seconds since the epoch
does: the kernel derives that from the clock as it is now.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STARTED = 22 - 3
"""The start time's place among the fields after the command, which is the second and may itself hold blanks."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def signal_when_parent_ends(number: int) -> None:
    """Have the kernel send this process a signal when its parent has ended, even by SIGKILL (Linux; prctl(2)). May be
    called between fork and exec."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)


def read_identity(pid: int) -> str:
    """The start of a process as `BOOT/TICKS`; empty when there is no such process, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"{BOOT_ID.read_text().strip()}/{int(fields[STARTED])}"
    except (OSError, IndexError, ValueError):
        return ""


def read_start_time(pid: int) -> float:
    """The start time of a process in seconds since the epoch, by the clock as it is now. Raises psutil.Error."""
    import psutil

    started: float = psutil.Process(pid).create_time()
    return started


def is_alive(pid: int, start_time: float, identity: str = "", argument: str = "") -> bool:
    """Whether the process with this pid that was started then still runs. A zombie does not.

    Records of older versions have no `identity`. For them the start time decides, or, since the clock may have been set
    meanwhile, that `argument` is on the process's command line.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if identity and (now := read_identity(pid)):
            return now == identity
        if abs(process.create_time() - start_time) < 1.0:
            return True
        return not identity and bool(argument) and argument in process.cmdline()
    except psutil.Error:
        return False


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or held by a debugger, so that it answers nobody."""
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False
