"""Ranks that have fallen silent, named before any collective's time-out ends the run.

Two signs: no heartbeat (the process is stopped, or stuck with the interpreter's lock), and heartbeats without progress while the others
wait. A heartbeat comes from a thread of its own once a second; `Rank.time` is when the rank itself last got on.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

import psutil

from engine.protocol.messages import Rank

UNHEARD = 15.0
"""Seconds without a heartbeat after which a rank counts as silent. Loading a large file can hold the interpreter for some."""
PATIENCE = 10.0
"""A phase may last this many times the longest of its kind so far."""
LEAST = 120.0
"""Seconds that any step may last, and"""
LEAST_OTHERWISE = 900.0
"""any other phase: compiling, evaluating and saving have no measure before the first."""
STACKS = signal.SIGUSR1
"""Makes a rank write the stacks of all its threads to the log (`engine.training.inbox`)."""


@dataclass
class Pulse:
    """What is known of the ranks of one run's present attempt. Times are `time.time()`."""

    heard: dict[int, float] = field(default_factory=dict)
    """When each rank's last heartbeat came."""
    longest: dict[str, float] = field(default_factory=dict)
    """The longest time that each kind of phase went without progress, and ended."""
    progress: dict[int, Rank] = field(default_factory=dict)
    """Each rank's last heartbeat."""
    looked: float = 0.0
    """When `silent` was last asked."""
    woke: float = 0.0
    """When this process itself last stood still, with the whole machine perhaps."""
    named: set[int] = field(default_factory=set)
    """Ranks that have been named already, for as long as they are silent."""

    def beat(self, rank: Rank, now: float) -> None:
        """Take in a heartbeat."""
        before = self.progress.get(rank.rank)
        if before is not None and rank.time > before.time:
            kind = _kind(before)
            self.longest[kind] = max(self.longest.get(kind, 0.0), rank.time - before.time)
        self.heard[rank.rank] = now
        self.progress[rank.rank] = rank

    def silent(self, now: float) -> dict[int, str]:
        """Ranks that are silent, each with what is known about it. Pausing and loading are no silence, nor is waiting for another rank."""
        if now - self.looked > UNHEARD / 3:  # it was this process that stood still: nobody could be heard
            self.heard, self.woke = dict.fromkeys(self.heard, now), now
        self.looked = now
        unheard = {rank: now - heard for rank, heard in self.heard.items() if now - heard > UNHEARD}
        if unheard:
            return {rank: f"no sign of life for {seconds:.0f} s" for rank, seconds in unheard.items()}
        still = {rank: now - max(each.time, self.woke) for rank, each in self.progress.items()}
        stuck = {rank: seconds for rank, seconds in still.items() if seconds > self._bound(self.progress[rank])}
        blamed = {rank for rank in stuck if not self.progress[rank].waiting} or set(stuck)
        return {
            rank: f"{self.progress[rank].phase or 'no phase'}, and no step for {stuck[rank]:.0f} s" for rank in blamed
        }

    def _bound(self, rank: Rank) -> float:
        kind = _kind(rank)
        if kind in ("paused", "loading", "starting"):
            return float("inf")
        least = LEAST if kind == "training" else LEAST_OTHERWISE
        like = (kind, "first") if kind == "training" else (kind,)
        return max(least, PATIENCE * max(self.longest.get(each, 0.0) for each in like))


def _kind(rank: Rank) -> str:
    """The first word of a phase."""
    return rank.phase.partition(" ")[0]


def name(pulse: Pulse, now: float) -> str:
    """A sentence on ranks that have newly fallen silent, and the stacks of all ranks into the log; empty when there is nothing new."""
    silent = pulse.silent(now)
    pulse.named &= set(silent)
    new = set(silent) - pulse.named
    if not new:
        return ""
    pulse.named |= new
    told = [f"rank {rank}{_of_process(pulse.progress[rank])}: {silent[rank]}" for rank in sorted(new)]
    for each in pulse.progress.values():
        _ask_for_stacks(each.pid)
    return "; ".join(told)


def _of_process(rank: Rank) -> str:
    """The process, and what the kernel says that it does where that explains a silence."""
    try:
        status = psutil.Process(rank.pid).status()
    except psutil.Error:
        return f" (process {rank.pid} is gone)"
    return f" (process {rank.pid}{_WORDS.get(status, '')})"


_WORDS = {
    psutil.STATUS_STOPPED: " is stopped: somebody sent SIGSTOP",
    psutil.STATUS_TRACING_STOP: " is held by a debugger",
    psutil.STATUS_DISK_SLEEP: " waits for a disk or a device",
}


def _ask_for_stacks(pid: int) -> None:
    try:
        os.kill(pid, STACKS)
    except OSError:
        pass  # gone, or another host's
