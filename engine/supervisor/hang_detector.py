"""Finds ranks that hang, and names them before a collective's time-out ends the run.

A rank hangs when no heartbeat comes (the process is stopped, or something holds the interpreter's lock), or when
heartbeats come without progress while the other ranks wait. A thread of the rank sends a heartbeat once a second;
`Rank.time` changes whenever the rank itself makes progress. When that was is measured here, by a clock that nobody
sets.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

import psutil

from engine.protocol.messages import Rank

HEARTBEAT_TIMEOUT = 15.0
"""Seconds without a heartbeat after which a rank hangs. Loading a large file can hold the interpreter's lock for a
few."""
SLOWDOWN = 10.0
"""A phase may last this many times as long as the longest of its kind so far."""
SHORTEST_STEP_LIMIT = 120.0
"""Seconds that a step may always last."""
SHORTEST_PHASE_LIMIT = 900.0
"""Seconds that any other phase may always last: nothing is known before the first compilation, evaluation or
checkpoint."""
STACKS = signal.SIGUSR1
"""Makes a rank write the stacks of all its threads to the log (`engine.training.inbox`)."""


@dataclass
class Heartbeats:
    """The heartbeats of all ranks in one attempt of a run. Times are `time.monotonic()`."""

    received: dict[int, float] = field(default_factory=dict)
    """When the last heartbeat of each rank came."""
    progressed: dict[int, float] = field(default_factory=dict)
    """When each rank was last seen to have made progress."""
    longest: dict[str, float] = field(default_factory=dict)
    """The longest time without progress that each kind of phase has had and come through."""
    last: dict[int, Rank] = field(default_factory=dict)
    """The last heartbeat of each rank."""
    checked: float = 0.0
    """When `find_hung_ranks` was last called."""
    woke: float = 0.0
    """When this process last went on after it had been stopped, perhaps with the whole machine."""
    reported: set[int] = field(default_factory=set)
    """Ranks that hang and have been reported."""

    def add(self, rank: Rank, now: float) -> None:
        """Take a heartbeat that came at `now`."""
        before = self.last.get(rank.rank)
        if before is None:
            self.progressed[rank.rank] = now
        elif rank.time != before.time:
            kind = _phase_kind(before)
            self.longest[kind] = max(self.longest.get(kind, 0.0), now - self.progressed[rank.rank])
            self.progressed[rank.rank] = now
        self.received[rank.rank] = now
        self.last[rank.rank] = rank

    def find_hung_ranks(self, now: float) -> dict[int, str]:
        """The ranks that hang, each with a description. A rank that is paused, loads or waits for another one does not
        hang."""
        if now - self.checked > HEARTBEAT_TIMEOUT / 3:  # this process was stopped itself, and received nothing
            self.received, self.woke = dict.fromkeys(self.received, now), now
        self.checked = now
        late = {rank: now - time for rank, time in self.received.items() if now - time > HEARTBEAT_TIMEOUT}
        if late:
            return {rank: f"no heartbeat for {seconds:.0f} s" for rank, seconds in late.items()}
        idle = {rank: now - max(when, self.woke) for rank, when in self.progressed.items()}
        stuck = {rank: seconds for rank, seconds in idle.items() if seconds > self._time_limit(self.last[rank])}
        hung = {rank for rank in stuck if not self.last[rank].waiting} or set(stuck)
        return {
            rank: f"{self.last[rank].phase or 'no phase'}, without progress for {stuck[rank]:.0f} s" for rank in hung
        }

    def _time_limit(self, rank: Rank) -> float:
        kind = _phase_kind(rank)
        if kind in ("paused", "loading", "starting"):
            return float("inf")
        shortest = SHORTEST_STEP_LIMIT if kind == "training" else SHORTEST_PHASE_LIMIT
        alike = (kind, "first") if kind == "training" else (kind,)
        return max(shortest, SLOWDOWN * max(self.longest.get(each, 0.0) for each in alike))


def _phase_kind(rank: Rank) -> str:
    """The first word of a phase."""
    return rank.phase.partition(" ")[0]


def report_hangs(heartbeats: Heartbeats, now: float) -> str:
    """Describe the ranks that hang and have not been reported yet; empty when there are none. Every rank of this host
    is made to write its stacks to the log."""
    hung = heartbeats.find_hung_ranks(now)
    heartbeats.reported &= set(hung)
    new = set(hung) - heartbeats.reported
    if not new:
        return ""
    heartbeats.reported |= new
    found = [f"rank {rank}{_describe_process(heartbeats.last[rank])}: {hung[rank]}" for rank in sorted(new)]
    for each in heartbeats.last.values():
        if not each.host:
            _request_stacks(each.pid)
    return "; ".join(found)


def _describe_process(rank: Rank) -> str:
    """The process, and its state where that explains why it hangs."""
    if rank.host:
        return f" (process {rank.pid} on {rank.host})"
    try:
        status = psutil.Process(rank.pid).status()
    except psutil.Error:
        return f" (process {rank.pid} is gone)"
    return f" (process {rank.pid}{_STATES.get(status, '')})"


_STATES = {
    psutil.STATUS_STOPPED: " is stopped by SIGSTOP",
    psutil.STATUS_TRACING_STOP: " is held by a debugger",
    psutil.STATUS_DISK_SLEEP: " waits for a disk or device",
}


def _request_stacks(pid: int) -> None:
    try:
        os.kill(pid, STACKS)
    except OSError:
        pass  # it has ended, or runs on another host
