"""Explains why a worker died: what happened, the last lines of its log, and a hint with the run's own settings."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from engine.config.memory_savings import list_memory_savings
from engine.config.profile import Profile
from engine.protocol.memory_errors import find_exhausted_memory
from engine.protocol.messages import Problem

LAST_LINES = 20

_RANK = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*(-?\d+)")

SIGNALS = {
    signal.SIGKILL: (
        "killed with SIGKILL, which no process can catch: a user ran kill -9, or the kernel ran out of memory"
    ),
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGSEGV: "a segmentation fault in native code (SIGSEGV)",
    signal.SIGBUS: "a bus error (SIGBUS): often a full /dev/shm, or a memory-mapped file that was truncated",
    signal.SIGABRT: "native code aborted (SIGABRT): a failed assertion in a library, or a collective that timed out",
    signal.SIGILL: "an instruction that this CPU does not support (SIGILL): a library built for another machine",
    signal.SIGFPE: "an arithmetic error in native code (SIGFPE)",
    signal.SIGINT: "interrupted (SIGINT)",
    signal.SIGHUP: "its terminal was closed (SIGHUP)",
    signal.SIGXFSZ: "a file grew beyond the size limit (SIGXFSZ)",
}


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended. `status` is the exit status, negative for a signal; `log` the end of its log; `oom_killed`
    whether the kernel's out-of-memory killer has ended a process meanwhile."""

    status: int
    log: str
    oom_killed: bool = False
    checkpoints: bool = True
    """Whether the run has a checkpoint to go on from."""


RESUME = "read the log; `cockpit resume` continues from the last checkpoint"


def report_crash(ended: WorkerExit, profile: Profile | None, again: str = RESUME) -> Problem:
    """The problem to show for a worker that ended without reporting one itself. `again` says how to go on."""
    rank, status = _find_failing_rank(ended)
    who = f"Rank {rank}" if rank is not None else "The worker"
    tail = "\n".join(ended.log.splitlines()[-LAST_LINES:])
    if ended.oom_killed and status == -signal.SIGKILL:
        return Problem(
            code="memory.host_exhausted",
            title=f"{who} was killed by the kernel's out-of-memory killer",
            cause="the host ran out of memory and the kernel chose this process",
            hint=_suggest_less_memory(profile, "host memory"),
            traceback=tail,
        )
    code, hint = _suggest_fix(ended, profile, "worker.killed" if status < 0 else "worker.failed", again)
    if status < 0:
        return Problem(code=code, title=f"{who} died", cause=_describe_signal(-status), hint=hint, traceback=tail)
    last = next((line.strip() for line in reversed(ended.log.splitlines()) if line.strip()), "there is no output")
    return Problem(code=code, title=f"{who} ended with exit status {status}", cause=last, hint=hint, traceback=tail)


def _find_failing_rank(ended: WorkerExit) -> tuple[int | None, int]:
    """The failing rank and its exit status, when the table that torchrun prints at its end names one."""
    killed = find_killed_rank(ended.log)
    matches = _RANK.findall(ended.log)
    return killed or ((int(matches[-1][0]), int(matches[-1][1])) if matches else (None, ended.status))


def find_killed_rank(log: str) -> tuple[int, int] | None:
    """The rank that a signal ended, and its exit status; None when none was.

    The other ranks then fail because they have lost it, and one of them may be the first that the launcher notices.
    SIGTERM does not count: with it the launcher itself ends the ranks that are left.
    """
    found = ((int(rank), int(status)) for rank, status in _RANK.findall(log))
    return next(((rank, status) for rank, status in found if status < 0 and status != -signal.SIGTERM), None)


def _describe_signal(number: int) -> str:
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"killed by signal {number}"
    return SIGNALS.get(known, f"killed by {known.name}")


def _suggest_fix(ended: WorkerExit, profile: Profile | None, otherwise: str, again: str) -> tuple[str, str]:
    """The problem's code and hint. The code is `otherwise` when the log does not say that memory ran out."""
    match find_exhausted_memory(ended.log):
        case "device":
            return "memory.exhausted", _suggest_less_memory(profile, "device memory")
        case "host":
            return "memory.host_exhausted", _suggest_less_memory(profile, "host memory")
    if ended.checkpoints:
        return otherwise, again
    return otherwise, "read the log; there is no checkpoint yet, so `cockpit resume` begins again at the first step"


def _suggest_less_memory(profile: Profile | None, which: str) -> str:
    if profile is None:
        return f"use less {which}"
    return f"use less {which}: " + ", or ".join(list_memory_savings(profile))
