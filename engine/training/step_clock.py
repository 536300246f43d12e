"""Where the time of a step goes: the split that metrics publish as `time/…`, and the share of the card's peak.

The loop says at each boundary between two duties what has just been done (`lap`). On a CPU that is all. On a device
that computes while the loop goes on, forward and backward passes are told apart by events in its queue, which are read
one step later, when they are over: nothing ever waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from engine.training.ranks import Ranks

PUBLISH_SECONDS = 5.0
"""Seconds between two entries of metrics with a split. A single step says little, and most of them are alike."""
COMPUTED = ("copy", "forward", "backward", "optimizer")
"""Duties of the device. The loop's own time in them is divided by the device's events."""
WAITING, REDUCTION = "wait", "reduction"
"""Waiting for the other ranks before gradients are summed, and summing them: no part of a rank's own work."""
OUTSIDE = ("logging", "evaluation", "saving")
"""Duties between two steps. They are rare, so their shares are those of the whole attempt."""
NAMES = ("data", "rollouts", *COMPUTED[:3], WAITING, REDUCTION, COMPUTED[3], *OUTSIDE)


class StepClock:
    """The seconds of this rank by duty, since the last split that was published."""

    def __init__(self, device_kind: str, ranks: Ranks, now: Callable[[], float] = time.perf_counter) -> None:
        self._ranks, self._now = ranks, now
        self._device = _DeviceLaps(device_kind) if has_events(device_kind) else None
        self._last = self._published = now()
        self.seconds: dict[str, float] = {}
        self._whole = dict.fromkeys(("", *OUTSIDE), 0.0)
        """The seconds of the whole attempt outside of steps by duty, and all of them."""
        self.steps = 0
        self.tokens = self.places = 0
        """Tokens of rows, and places for tokens in their padded batches."""
        self._unsent = 0.0
        self._busy = [0.0] * ranks.world

    def begin(self) -> None:
        """What came since the last lap is not counted: a pause, an answer to a question."""
        self._last = self._now()
        if self._device:
            self._device.drop()

    def lap(self, name: str) -> None:
        """The time since the last call went into `name`; into nothing that counts if that is empty."""
        now = self._now()
        if name:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
            if name not in (WAITING, REDUCTION, *OUTSIDE):
                self._unsent += now - self._last
        self._last = now
        if self._device and name in ("", *COMPUTED, WAITING, REDUCTION):  # the device is idle in a pause, too
            self._device.record(name)

    def move(self, name: str, other: str, seconds: float) -> None:
        """Count `seconds` of the last lap of `name`, a rank's own work, as `other`, which is not."""
        if seconds:
            self.seconds[name] = self.seconds.get(name, 0.0) - seconds
            self.seconds[other] = self.seconds.get(other, 0.0) + seconds
            self._unsent -= seconds

    def add_batch(self, batch: dict[str, Any], tokens: int) -> None:
        """Count a micro-batch on the CPU, before it is copied."""
        if places := _count_places(batch):
            self.tokens, self.places = self.tokens + tokens, self.places + places

    def end_step(self) -> None:
        self.steps += 1
        if self._device:
            self._device.end_step()

    def take_busy(self) -> list[float]:
        """For the sum over all ranks: this rank's seconds of own work since the last call, in its own place."""
        busy = [0.0] * self._ranks.world
        busy[self._ranks.rank], self._unsent = self._unsent, 0.0
        return busy

    def publish(self, busy: list[float], *, last: bool) -> dict[str, float | None]:
        """The split since the last one, as metrics; nothing while that is too recent. `busy` is the ranks' sum of
        `take_busy`."""
        self._busy = [before + more for before, more in zip(self._busy, busy, strict=True)]
        now = self._now()
        if (now - self._published < PUBLISH_SECONDS and not last) or not self.steps:
            return {}
        values = self._describe()
        self.seconds, self.steps, self.tokens, self.places = {}, 0, 0, 0
        self._published, self._busy = now, [0.0] * self._ranks.world
        return values

    def _describe(self) -> dict[str, float | None]:
        seconds = dict(self.seconds)
        if self._device:
            host = sum(seconds.pop(name, 0.0) for name in COMPUTED)
            seconds |= {name: share * host for name, share in self._device.take_shares().items()}
        for name in OUTSIDE:
            self._whole[name] += seconds.get(name, 0.0)
        self._whole[""] += sum(seconds.values())
        outside = {name: self._whole[name] / (self._whole[""] or 1.0) for name in OUTSIDE}
        inside = sum(seconds.get(name, 0.0) for name in NAMES if name not in OUTSIDE)
        if inside <= 0:
            return {}
        share = (1 - sum(outside.values())) / inside
        values: dict[str, float | None] = {
            f"time/{name}": outside[name] if name in OUTSIDE else seconds.get(name, 0.0) * share for name in NAMES
        }
        if self.places:
            values["train/padding"] = max(0.0, 1 - self.tokens / self.places)
        if self._ranks.world > 1:
            usual = sorted(self._busy)[(self._ranks.world - 1) // 2]
            slowest = max(range(self._ranks.world), key=self._busy.__getitem__)
            values |= {"time/slowest_rank": float(slowest)}
            values |= {"time/slowest_factor": self._busy[slowest] / usual} if usual > 0 else {}
        return values


def has_events(device_kind: str) -> bool:
    """Whether this kind of device computes by itself, and has events that tell its time."""
    if device_kind == "cpu":
        return False
    import torch

    return hasattr(getattr(torch, device_kind, None), "Event")


class _DeviceLaps:
    """Events in the device's queue. Those of a step are read when a later step ends, if the device has passed them;
    a step that it has not passed by then is left out."""

    def __init__(self, kind: str) -> None:
        import torch

        self._make: Callable[[], Any] = lambda: getattr(torch, kind).Event(enable_timing=True)
        self._free: list[Any] = []
        self._now: list[tuple[str, Any]] = []
        self._before: list[tuple[str, Any]] = []
        self._seconds: dict[str, float] = {}

    def record(self, name: str) -> None:
        event = self._free.pop() if self._free else self._make()
        event.record()
        self._now.append((name, event))

    def end_step(self) -> None:
        if self._before and self._before[-1][1].query():
            for (_, begin), (name, end) in zip(self._before, self._before[1:], strict=False):
                if name in COMPUTED:
                    self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1e3
        self._free += [event for _, event in self._before]
        self._before, self._now = self._now, []

    def drop(self) -> None:
        """Forget what was recorded in this step."""
        self._free += [event for _, event in self._now]
        self._now = []

    def take_shares(self) -> dict[str, float]:
        """How the device's time was divided among its duties; all of it forward passes if that is not known."""
        whole = sum(self._seconds.values())
        shares = {name: seconds / whole for name, seconds in self._seconds.items()} if whole > 0 else {"forward": 1.0}
        self._seconds = {}
        return shares


def _count_places(batch: dict[str, Any]) -> int:
    """Places for tokens in a batch and in the batches in it."""
    found = 0
    for name, value in batch.items():
        if isinstance(value, dict):
            found += _count_places(value)
        elif name == "input_ids" and hasattr(value, "numel"):
            found += int(value.numel())
    return found
