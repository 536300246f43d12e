"""A job's processes: start them, find them again, end all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.protocol.wire import process_alive

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""

WORKER_DEFAULTS = {
    "GOMP_SPINCOUNT": "1000",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
"""What a worker on CPU cores runs better with. The user's own settings win.

OpenMP's threads spin while they wait, by default for long. Beside any other busy process (a chat beside a training, a data
loader) the spinning takes the cores that the work needs: two processes of two threads on two cores made 50 small products a second
each, with this short spin 1400, and alone as many as before.

glibc hands every freed block of some megabytes back to the kernel, and gets it again as pages to be zeroed: an activation's
whole life. Kept instead, a training step takes 8 % less time. Who wants to give memory back calls `malloc_trim`."""

# What the engine itself was started with that a job must not inherit: secrets come from the submitting shell alone.
_INHERITED_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")


@dataclass
class Leader:
    """A job's first process. `child` is None when an earlier supervisor started it: then its exit status cannot be known."""

    pid: int
    start_time: float
    child: subprocess.Popen[bytes] | None = None

    def ended(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None
        return not process_alive(self.pid, self.start_time)

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while running and for an adopted process."""
        return self.child.returncode if self.child else None


def first_to_go(pid: int) -> None:
    """Where the host's memory runs out, let the kernel end this process and its children before any job."""
    with contextlib.suppress(OSError):  # not Linux, or gone already
        Path(f"/proc/{pid}/oom_score_adj").write_text("800")


def start(command: list[str], log: Path, environment: dict[str, str]) -> Leader:
    """Start a job's first process in a session of its own, its output appended to `log`. Raises OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    inherited = WORKER_DEFAULTS | {key: value for key, value in os.environ.items() if key not in _INHERITED_SECRETS}
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=inherited | environment,
        )
    return Leader(child.pid, psutil.Process(child.pid).create_time(), child)


def of_job(job: str, home: Path) -> list[psutil.Process]:
    """All live processes of a job, by the `--job` and `--home` in their command lines: launcher, ranks, their helpers.

    torchrun gives each rank a session of its own, and a killed launcher leaves ranks without a parent, so neither
    the process group nor the tree finds them all.
    """
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if "--job" in line and job in line and str(home) in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """SIGTERM to all, SIGKILL after `GRACE` to whoever is left. Blocks for at most about twice that."""
    waiting = list(processes)
    for process in waiting:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(waiting, timeout=GRACE)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=GRACE)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def oom_kills() -> int:
    """How many processes this kernel's OOM killer has ended since boot (Linux; 0 elsewhere)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
