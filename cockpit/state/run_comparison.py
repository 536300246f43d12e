"""What differs between runs: settings, data, batches, results, and what they cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.formatting import format_duration, format_number
from engine.protocol.messages import Telemetry, TelemetryQuery

LONGEST_GAP = 180.0
"""Seconds between two samples of telemetry beyond which nothing is assumed about the power between them."""
EVERY = 60.0
"""Seconds for each of which a sample of the devices' power is requested: older ones are kept for each minute."""
DAY = 86_400.0
"""Seconds of which the samples are requested together."""
ABSENT = "–"
_DIGEST = 12
"""Characters of a digest that are shown."""


@dataclass(frozen=True)
class Side:
    """One of the runs that are compared."""

    run: str
    state: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Path of a setting -> its value."""
    files: Sequence[tuple[str, str, str]] = ()
    """Part, name and SHA-256 of each file of data."""
    batches: Mapping[int, str] = field(default_factory=dict)
    """Step of a checkpoint -> digest of the rows of the batch after it."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Metric -> its newest value."""
    steps: int = 0
    attempts: int = 0
    seconds: float = 0.0
    """How long it was running, in all attempts."""
    spans: Sequence[tuple[float, float]] = ()
    """When it was running: seconds since the epoch."""
    span_devices: Sequence[Sequence[int]] = ()
    """The devices of each span."""
    devices: Sequence[int] = ()
    """The devices of the newest attempt."""
    sampled: bool = True
    """Whether its devices are those of this host, whose power the engine here samples."""
    through: str = ""
    """What has started it on hosts whose devices are not known here: `Slurm`."""
    energy: float | None = None
    """Watt-hours of its devices; None where they do not report their power."""
    noted: str = ""
    """What could not be read."""


@dataclass(frozen=True)
class Section:
    """A part of the comparison: a row of cells for each thing, the first one its name, then one for each run."""

    title: str
    rows: Sequence[tuple[str, ...]] = ()
    note: str = ""
    sentences: bool = False
    """Whether each row is a run and a sentence about it."""


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """A profile as path -> value: `data.train[0].source`."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, each in value.items():
            found |= flatten(each, f"{path}.{key}" if path else str(key))
        return found
    if isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value):
        found = {}
        for at, each in enumerate(value):
            found |= flatten(each, f"{path}[{at}]")
        return found
    return {path: value}


def differing(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The keys whose values are not the same in all tables, with the value of each; – for one that is absent."""
    names = dict.fromkeys(name for table in tables for name in table)
    missing = object()
    return [
        (name, *(ABSENT if name not in table else _write(table[name]) for table in tables))
        for name in names
        if any(table.get(name, missing) != tables[0].get(name, missing) for table in tables[1:])
    ]


def _write(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)  # a float in full: two that differ must not look the same


def differing_files(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    """The files of data that are not the same in all runs, with the beginning of each digest."""
    tables = []
    for side in sides:
        table: dict[str, str] = {}
        for part, name, digest in side.files:
            key, again = f"{part} {name}", 2
            while key in table:
                key, again = f"{part} {name} ({again})", again + 1
            table[key] = digest[:_DIGEST]
        tables.append(table)
    return differing(tables)


def first_batch(one: Side, other: Side) -> tuple[int | None, int | None]:
    """The last step after which both took the same batch, and the first after which they did not, as far as both have
    checkpoints of the same steps; None for one that is not known."""
    same: int | None = None
    for step in sorted(one.batches.keys() & other.batches.keys()):
        if one.batches[step] != other.batches[step]:
            return same, step
        same = step
    return same, None


def describe_first_batch(one: Side, other: Side) -> str:
    same, differs = first_batch(one, other)
    if differs is None:
        if same is None:
            return tr("not known: no checkpoints of the same steps")
        return tr("the same at all common checkpoints, up to the batch after step {same:,}", same=same)
    if same is None:
        return tr("at or before the batch after step {differs:,}, the first that both have", differs=differs)
    return tr(
        "between the batches after step {same:,} (the same) and step {differs:,} (another)", same=same, differs=differs
    )


def energy_requests(side: Side) -> Iterator[tuple[TelemetryQuery, Sequence[int], list[tuple[float, float]]]]:
    """What to ask for to know a run's energy: queries, each with the devices and the spans that `measure_energy` takes
    with its samples. The energy is the sum of all."""
    for devices in dict.fromkeys(tuple(each) for each in side.span_devices if each and side.sampled):
        spans = sorted(span for span, each in zip(side.spans, side.span_devices, strict=True) if tuple(each) == devices)
        at, end = spans[0][0], max(stop for _, stop in spans)
        while at < end:
            inside = [(max(at, start), min(at + DAY, stop)) for start, stop in spans if start < at + DAY and stop > at]
            if inside:
                first, last = inside[0][0] - LONGEST_GAP, inside[-1][1] + LONGEST_GAP
                yield TelemetryQuery(first=first, last=last, points=math.ceil((last - first) / EVERY)), devices, inside
            at = max(at + DAY, min((start for start, stop in spans if stop > at + DAY), default=end))


def measure_energy(
    samples: Iterable[Telemetry], devices: Sequence[int], spans: Sequence[tuple[float, float]]
) -> float | None:
    """Watt-hours of these devices during these spans: the power of neighbouring samples, averaged, times the time
    between them. None without two samples that report it."""
    total, known = 0.0, False
    before: tuple[float, float] | None = None
    for sample in sorted(samples, key=lambda each: each.time):
        powers = [each.power for each in sample.devices if each.index in devices and each.power is not None]
        if len(powers) < len(devices) or not powers:
            before = None
            continue
        now = (sample.time, sum(powers))
        if before is not None and now[0] - before[0] <= LONGEST_GAP:
            inside = sum(max(0.0, min(now[0], stop) - max(before[0], start)) for start, stop in spans)
            total += (before[1] + now[1]) / 2 * inside / 3600
            known = known or inside > 0
        before = now
    return total if known else None


def compare_sides(sides: Sequence[Side]) -> list[Section]:
    """Everything but the evaluations, which the engine compares."""
    settings = differing([side.settings for side in sides])
    files = differing_files(sides)
    first = sides[0]
    batches = [(other.run, describe_first_batch(first, other)) for other in sides[1:]]
    names = sorted(dict.fromkeys(name for side in sides for name in side.values))
    metrics = [
        (name, *(format_number(side.values[name]) if name in side.values else ABSENT for side in sides))
        for name in names
    ]
    notes = "; ".join(f"{side.run}: {side.noted}" for side in sides if side.noted)
    return [
        Section(tr("settings that differ"), settings, notes or ("" if settings else "none")),
        Section(tr("data that differ"), files, "" if files else _same_data(sides)),
        Section(tr("first batch that differs from {run}'s", run=first.run), batches, sentences=True),
        Section(tr("newest values"), metrics, "" if metrics else tr("no metrics yet")),
        Section(tr("cost"), cost_rows(sides)),
    ]


def _same_data(sides: Sequence[Side]) -> str:
    if all(side.files for side in sides):
        return tr("none: all files have the same SHA-256")
    return tr("not known: not every run has prepared its data")


def write_device_time(side: Side) -> str:
    seconds = sum(
        (stop - start) * len(devices) for (start, stop), devices in zip(side.spans, side.span_devices, strict=False)
    )
    return format_duration(seconds) if seconds else ABSENT


def cost_rows(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    def row(name: str, write: Callable[[Side], str]) -> tuple[str, ...]:
        return (name, *(write(side) for side in sides))

    return [
        row(tr("state"), lambda side: side.state or ABSENT),
        row(tr("steps"), lambda side: f"{side.steps:,}"),
        row(tr("attempts"), lambda side: str(side.attempts)),
        row(tr("time running"), lambda side: format_duration(side.seconds) if side.seconds else ABSENT),
        row(tr("devices"), lambda side: str(len(side.devices)) if side.devices else side.through or "CPU"),
        row(tr("device time"), write_device_time),
        row(tr("energy"), lambda side: ABSENT if side.energy is None else tr("{energy:,.1f} Wh", energy=side.energy)),
    ]


def evaluation_rows(compared: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A metric's name, both values, the difference, its 95 % interval, and whether it is beyond noise."""
    found: list[tuple[str, ...]] = []
    for name, each in compared["differences"].items():
        verdict = {1: "better", -1: "worse"}.get(each["better"], "differs" if each["beyond_noise"] else "noise")
        sign = "+" if each["difference"] > 0 else ""
        interval = f"{format_number(each['low'])} … {format_number(each['high'])}"
        figures = (
            format_number(each["first"]),
            format_number(each["second"]),
            sign + format_number(each["difference"]),
        )
        found.append((name, *figures, interval, verdict))
    return found
