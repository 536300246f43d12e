"""Why a worker died: a sentence, its last lines, and a hint with that run's own numbers."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from engine.config.profile import Profile
from engine.protocol.memory_errors import find_exhausted_memory
from engine.protocol.messages import Problem

LAST_LINES = 20

_RANK = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*(-?\d+)")

SIGNALS = {
    signal.SIGKILL: "killed with SIGKILL, which no process can catch: somebody ran kill -9, or the kernel ran out of memory",
    signal.SIGTERM: "asked to end with SIGTERM",
    signal.SIGSEGV: "a segmentation fault in native code (SIGSEGV)",
    signal.SIGBUS: "a bus error (SIGBUS): often a full /dev/shm, or a memory-mapped file that was cut short",
    signal.SIGABRT: "native code gave up (SIGABRT): a failed assertion in a library, or a collective that timed out",
    signal.SIGILL: "an instruction that this CPU does not have (SIGILL): a library built for another machine",
    signal.SIGFPE: "an arithmetic error in native code (SIGFPE)",
    signal.SIGINT: "interrupted (SIGINT)",
    signal.SIGHUP: "its terminal went away (SIGHUP)",
    signal.SIGXFSZ: "a file grew beyond the size limit (SIGXFSZ)",
}


@dataclass(frozen=True)
class Death:
    """What is known of a worker's end. `status` is the exit status, negative for a signal."""

    status: int
    log: str
    oom_killed: bool = False


def explain(death: Death, profile: Profile | None) -> Problem:
    """The problem to show, for a worker that left no word of its own."""
    rank, status = _culprit(death)
    who = f"Rank {rank}" if rank is not None else "The worker"
    tail = "\n".join(death.log.splitlines()[-LAST_LINES:])
    if death.oom_killed and status == -signal.SIGKILL:
        return Problem(
            title=f"{who} was killed by the kernel's out-of-memory killer",
            cause="the host ran out of memory and the kernel chose this process",
            hint=_less_memory(profile, "host memory"),
            traceback=tail,
        )
    if status < 0:
        return Problem(
            title=f"{who} died", cause=_signal_words(-status), hint=_hint(death.log, profile), traceback=tail
        )
    last = next((line.strip() for line in reversed(death.log.splitlines()) if line.strip()), "it said nothing")
    return Problem(
        title=f"{who} ended with exit status {status}", cause=last, hint=_hint(death.log, profile), traceback=tail
    )


def _culprit(death: Death) -> tuple[int | None, int]:
    """The failing rank and its status, when torchrun's closing table names one."""
    matches = _RANK.findall(death.log)
    return (int(matches[-1][0]), int(matches[-1][1])) if matches else (None, death.status)


def _signal_words(number: int) -> str:
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"killed by signal {number}"
    return SIGNALS.get(known, f"killed by {known.name}")


def _hint(log: str, profile: Profile | None) -> str:
    if memory := find_exhausted_memory(log):
        return _less_memory(profile, f"{memory} memory")
    return "read the log; `cockpit resume` goes on from the last checkpoint"


def _less_memory(profile: Profile | None, which: str) -> str:
    if profile is None:
        return f"use less {which}"
    training, data = profile.training, profile.data
    micro, steps = training.micro_batch, training.accumulation
    advice = []
    if micro > 1:
        advice.append(
            f"training.micro_batch={-(-micro // 2)} with training.accumulation={steps * 2} (now {micro} × {steps}, the same global batch)"
        )
    if not training.gradient_checkpointing:
        advice.append("training.gradient_checkpointing=true")
    advice.append(f"a data.max_length below {data.max_length}")
    return f"use less {which}: " + ", or ".join(advice)
