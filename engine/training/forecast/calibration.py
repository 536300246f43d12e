"""Learns from earlier forecasts: what runs on each type of device really took, in `forecasts/calibration.json`."""

from __future__ import annotations

import fcntl
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

from engine.config.forecasts import folder
from engine.protocol.home import Home, make_private, write_private

KEPT = 50
"""Runs of a type of device that are remembered."""
ENOUGH = 3
"""Runs from which on their errors count, rather than the assumed one."""
ASSUMED = {"cpu": 15.0}
"""Percent of error that is assumed before there are enough runs; for all other kinds of devices, `ASSUMED_OTHERS`."""
ASSUMED_OTHERS = 10.0
BOUNDS = (0.8, 1.25)
"""A forecast is corrected by no more than that: what differs more has another cause than the type of device."""
LEAST = 2.0
"""Percent of error, at least."""


@dataclass(frozen=True)
class Calibration:
    """`factor` is what a forecast is multiplied by; `flops` the speed of one rank in floating-point operations a
    second, None before a run was measured."""

    factor: float = 1.0
    error_percent: float = ASSUMED_OTHERS
    flops: float | None = None
    runs: int = 0


def read(home: Home, label: str, kind: str) -> Calibration:
    """What the runs on devices of this name tell."""
    runs = list_runs(home).get(label, [])
    ratios = [run["actual"] / run["forecast"] for run in runs if run["forecast"] and run["actual"]]
    speeds = [run["flops"] for run in runs if run.get("flops")]
    error = ASSUMED.get(kind, ASSUMED_OTHERS)
    factor = 1.0
    if len(ratios) >= ENOUGH:
        factor = min(max(statistics.median(ratios), BOUNDS[0]), BOUNDS[1])
        errors = sorted(abs(ratio / factor - 1) * 100 for ratio in ratios)
        error = max(LEAST, errors[min(len(errors) - 1, int(len(errors) * 0.9))])
    return Calibration(factor, error, statistics.median(speeds[-10:]) if speeds else None, len(ratios))


def add(
    home: Home, label: str, *, run: str, forecast: int | None, actual: int | None, flops: float | None = None
) -> None:
    """Remember a run: the bytes that were forecast (before calibration) and those that it took, and its speed. A run
    that cannot be written is forgotten."""
    entry = {"run": run, "time": time.time(), "forecast": forecast, "actual": actual, "flops": flops}
    try:
        place = make_private(folder(home))
        with (place / ".calibration.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs that end at once, both are remembered
            runs = list_runs(home)
            others = [each for each in runs.get(label, []) if each["run"] != run]
            runs[label] = [*others, entry][-KEPT:]
            write_private(place / "calibration.json", json.dumps(runs, indent=1).encode())
    except OSError:
        pass


def list_runs(home: Home) -> dict[str, list[dict[str, Any]]]:
    """The remembered runs by the name of their device."""
    try:
        found = json.loads((folder(home) / "calibration.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
