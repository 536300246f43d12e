"""What devices have done over a run: samples of the past as rows of cells along the run's axis. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

from engine.protocol.messages import Device, Telemetry

GIGA = float(1 << 30)
HELD = 150.0
"""Seconds that a sample stands for at least: of an hour ago there is one a minute."""
HOUR, MINUTE = 3600.0, 60.0
"""Of the last hour a track keeps each sample, of before one a minute, as the engine does."""
COOL, BOILING = 30.0, 100.0
"""Degrees at the lower and the upper edge of a row."""
HOT = 90.0
FULL = 0.95
STRAGGLING = 0.6
"""A device whose utilisation is below this share of the median of the devices straggles."""
OFTEN = 0.1
"""A device that straggles in so large a share of what is shown is marked."""
POWER = 700.0
"""Watts at the upper edge where no limit is reported."""


@dataclass(frozen=True)
class Quantity:
    """What is drawn of each device: its `value`, the `share` of the row's height, how it is written, and from where it
    is alarming."""

    name: str
    value: Callable[[Device], float | None]
    share: Callable[[Device, float], float]
    write: Callable[[float], str]
    alarms: Callable[[float, float], bool] = lambda value, share: False


QUANTITIES = (
    Quantity("utilisation", lambda each: each.utilisation, lambda _, value: value / 100, lambda value: f"{value:.0f}%"),
    Quantity(
        "memory",
        lambda each: None if each.memory_used is None else float(each.memory_used),
        lambda each, value: value / each.memory_total if each.memory_total else 0.0,
        lambda value: f"{value / GIGA:.0f}G",
        lambda _, share: share > FULL,
    ),
    Quantity(
        "power",
        lambda each: each.power,
        lambda each, value: value / (each.power_limit or POWER),
        lambda value: f"{value:.0f}W",
    ),
    Quantity(
        "temperature",
        lambda each: each.temperature,
        lambda _, value: (value - COOL) / (BOILING - COOL),
        lambda value: f"{value:.0f}°",
        lambda value, _: value >= HOT,
    ),
)
HOST = "host"
"""The name of the rows of the host: its processors and its memory."""
HOST_ROWS = ("CPU", "mem")


@dataclass
class Track:
    """One row's samples: moments, values and shares, ascending in time. `held`: seconds that a sample stands for."""

    label: str
    moments: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    held: float = HELD
    _full: int = 2 * int(HOUR)
    """The number of samples at which old ones are left out."""

    def add(self, moment: float, value: float, share: float) -> None:
        if not self.moments or moment > self.moments[-1]:
            self.moments.append(moment)
            self.values.append(value)
            self.shares.append(max(0.0, min(1.0, share)))
            if len(self.moments) >= self._full:
                self._thin()

    def _thin(self) -> None:
        recent = bisect_right(self.moments, self.moments[-1] - HOUR)
        minutes = [moment // MINUTE for moment in self.moments[: recent + 1]]
        kept = [at for at in range(recent) if minutes[at] != minutes[at + 1]]
        for each in (self.moments, self.values, self.shares):
            each[:recent] = [each[at] for at in kept]
        self._full = len(self.moments) + int(HOUR)

    def merge(self, other: Track) -> None:
        """Take in another track's samples of the same row."""
        if not other.moments:
            return
        first, last = bisect_left(self.moments, other.moments[0]), bisect_right(self.moments, other.moments[-1])
        known = {
            moment: (value, share)
            for track, part in ((self, slice(first, last)), (other, slice(None)))
            for moment, value, share in zip(track.moments[part], track.values[part], track.shares[part], strict=True)
        }
        moments = sorted(known)
        self.moments[first:last] = moments
        self.values[first:last] = [known[moment][0] for moment in moments]
        self.shares[first:last] = [known[moment][1] for moment in moments]

    def at(self, moment: float) -> float | None:
        """The value of the newest sample that stands for this moment."""
        place = bisect_right(self.moments, moment) - 1
        return self.values[place] if place >= 0 and moment - self.moments[place] <= self.held else None


@dataclass
class Asked:
    """The spans of time that the engine has been asked for: first and last moment, and the seconds of which it has
    returned the last sample."""

    spans: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, first: float, last: float, step: float) -> None:
        self.spans.append((first, last, step))

    def step(self, first: float, last: float) -> float:
        """Seconds between two samples of this span; infinite if it has not been asked for as a whole."""
        return min((step for start, end, step in self.spans if start <= first and last <= end), default=math.inf)


def needed_step(moments: Sequence[float]) -> float:
    """Seconds between two samples with which each cell of a row has one. `moments` are the edges of the cells. The
    engine keeps no more than a sample a second."""
    return max(1.0, median(end - start for start, end in pairwise(moments)))


def make_tracks(samples: Iterable[Telemetry], quantity: str, own: Sequence[int] = ()) -> list[Track]:
    """A track for each device, of the `own` ones where any of these are sampled; for `HOST`, those of the host."""
    tracks: dict[object, Track] = {}
    if quantity == HOST:
        tracks = {label: Track(label) for label in HOST_ROWS}
        for sample in samples:
            add_sample(list(tracks.values()), sample, quantity)
        return list(tracks.values())
    samples = list(samples)
    known = sorted({device.index for sample in samples for device in sample.devices})
    chosen = [index for index in known if index in own] or known
    found = [Track(str(index)) for index in chosen]
    for sample in samples:
        add_sample(found, sample, quantity)
    return found


def add_sample(tracks: Sequence[Track], sample: Telemetry, quantity: str) -> None:
    if quantity == HOST:
        host = sample.host
        memory = 100 * host.memory_used / host.memory_total if host.memory_total else 0.0
        for track, percent in zip(tracks, (host.cpu_percent, memory), strict=True):
            track.add(sample.time, percent, percent / 100)
        return
    what = next(each for each in QUANTITIES if each.name == quantity)
    devices = {str(device.index): device for device in sample.devices}
    for track in tracks:
        device = devices.get(track.label)
        value = what.value(device) if device is not None else None
        if device is not None and value is not None:
            track.add(sample.time, value, what.share(device, value))


def cells(track: Track, moments: Sequence[float]) -> list[tuple[float, float] | None]:
    """Value and share in each cell of a row, whose edges are at `moments`: the mean of its samples, else the newest
    sample that still stands; None where nothing is known."""
    found: list[tuple[float, float] | None] = []
    for start, end in pairwise(moments):
        first, last = bisect_right(track.moments, start), bisect_right(track.moments, end)
        if last > first:
            found.append((fmean(track.values[first:last]), fmean(track.shares[first:last])))
        elif first and start - track.moments[first - 1] <= track.held:
            found.append((track.values[first - 1], track.shares[first - 1]))
        else:
            found.append(None)
    return found


def find_stragglers(rows: Sequence[Sequence[tuple[float, float] | None]]) -> list[list[bool]]:
    """In which cells of these rows of utilisation a device is far less busy than the others at that time."""
    found = [[False] * len(row) for row in rows]
    for at, column in enumerate(zip(*rows, strict=True)):
        known = [cell[0] for cell in column if cell is not None]
        usual = median(known) if len(known) > 1 else 0.0
        for row, cell in enumerate(column):
            found[row][at] = cell is not None and cell[0] < STRAGGLING * usual
    return found


def straggles(cells: Sequence[bool]) -> bool:
    """Whether a device does so often enough to be marked."""
    return sum(cells) > OFTEN * len(cells)
