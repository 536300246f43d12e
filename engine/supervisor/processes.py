"""The processes of a job: start them, find them again, and end all of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.protocol import process
from engine.protocol.home import make_private, open_private

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""

WORKER_DEFAULTS = {
    "GOMP_SPINCOUNT": "1000",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
"""Environment variables with which a worker runs faster on CPU cores. The user's own settings take precedence.

OpenMP's threads spin while they wait, by default for a long time. Beside another busy process (a chat beside a training
run, a data loader) the spinning takes the cores that the work needs: two processes of two threads on two cores computed
50 small matrix products a second each, with this short spin 1400, and as many as before when alone.

glibc returns every freed block of some megabytes to the kernel, and gets it back as pages that have to be zeroed, for
each activation anew. When it keeps them, a training step takes 8 % less time. `malloc_trim` gives memory back where
that is wanted.
"""


@dataclass
class Leader:
    """A job's first process. `child` is None when an earlier supervisor started it: then its exit status cannot be
    known."""

    pid: int
    start_time: float
    identity: str = ""
    """As in `process.read_identity`; empty where an older version started the job."""
    child: subprocess.Popen[bytes] | None = None

    @classmethod
    def adopt(cls, job: str, pid: int, start_time: float, identity: str) -> Leader | None:
        """The first process of a job that an earlier supervisor started; None when it has ended. What an older version
        recorded is looked at once, and the process is known by its identity from then on."""
        if not process.is_alive(pid, start_time, identity, job):
            return None
        return cls(pid, start_time, identity or process.read_identity(pid))

    def has_ended(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None
        return not process.is_alive(self.pid, self.start_time, self.identity)

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while running and for an adopted process."""
        return self.child.returncode if self.child else None


def prefer_for_oom_kill(pid: int) -> None:
    """Make the kernel end this process and its children before any job when the host's memory runs out."""
    with contextlib.suppress(OSError):  # not Linux, or the process has ended
        Path(f"/proc/{pid}/oom_score_adj").write_text("800")


def start(command: list[str], log: Path, environment: dict[str, str]) -> Leader:
    """Start a job's first process in a session of its own, with this environment and `WORKER_DEFAULTS` alone. Its
    output is appended to `log`. Raises OSError."""
    make_private(log.parent)
    with open_private(log) as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=WORKER_DEFAULTS | environment,
        )
    return Leader(child.pid, process.read_start_time(child.pid), process.read_identity(child.pid), child)


def find_processes(job: str, home: Path, leader: Leader | None = None) -> list[psutil.Process]:
    """All live processes of a job, by the `--job` and `--home` in their command lines: launcher, ranks and their child
    processes. `leader` is one of them also while it has another command line: a worker that was kept ahead has that
    until it has taken the job.

    torchrun gives each rank a session of its own, and a killed launcher leaves ranks without a parent: neither the
    process group nor the process tree has them all.
    """
    found = []
    first = leader.pid if leader is not None and not leader.has_ended() else 0
    for each in psutil.process_iter():
        try:
            line = each.cmdline()
            named = "--job" in line and job in line and _names_home(line, home)
            if (named or each.pid == first) and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except psutil.Error:
            continue
    return found


def _names_home(line: list[str], home: Path) -> bool:
    """Whether a command line has this home, perhaps by a symbolic link."""
    places = [place for option, place in itertools.pairwise(line) if option == "--home"]
    return any(place == str(home) or os.path.realpath(place) == str(home) for place in places)


def find_session(leader: Leader) -> list[psutil.Process]:
    """All live processes of the session that a job's first process was started in, also when that has ended: what it
    has started (another program's server, with processes of its own) does not have the job in its command line.

    A session keeps its number as long as it has a process. When another process has that number, there is none left.
    """
    if leader.has_ended() and psutil.pid_exists(leader.pid):
        return []
    found = []
    for each in psutil.process_iter():
        try:
            if os.getsid(each.pid) == leader.pid and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except (psutil.Error, OSError):
            continue
    return found


def end_processes(processes: Iterable[psutil.Process], grace: float = GRACE) -> None:
    """Send SIGTERM to all, and SIGKILL after `grace` to those that are left. Blocks for at most about that time and
    `GRACE`."""
    waiting = list(processes)
    for each in waiting:
        _signal(each, signal.SIGTERM)
    _, alive = psutil.wait_procs(waiting, timeout=grace)
    for each in alive:
        _signal(each, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=GRACE)


def _signal(target: psutil.Process, number: int) -> None:
    try:
        target.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def count_oom_kills() -> int:
    """How many processes the kernel's out-of-memory killer has ended since the host started (Linux; 0 elsewhere)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
