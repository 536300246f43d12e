"""What the runs of a grid have come to, from the runs as the engine reports them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cockpit.language.translate import tr
from cockpit.profiles.grids import Grid
from engine.protocol.messages import Run

FALLBACK = ("eval/loss", "train/loss")
"""Metrics by which runs are compared that have not measured the grid's own."""


class GridRow(NamedTuple):
    """A run of a grid; `value` is its newest value of the compared metric, None where it is no finite number. The run
    may be deleted."""

    run: str
    state: str
    step: int
    settings: dict[str, str]
    value: float | None
    metrics: dict[str, float]


def choose_measure(grid: Grid, runs: Mapping[str, Run]) -> tuple[str, bool]:
    """The metric that the runs are compared by, and whether more of it is better."""
    present = [runs[member.run].metrics for member in grid.runs if member.run in runs]
    for name in (grid.measure, *FALLBACK):
        if any(name in metrics for metrics in present):
            return name, grid.rises and name == grid.measure
    return grid.measure, grid.rises


def list_rows(grid: Grid, runs: Mapping[str, Run]) -> list[GridRow]:
    """The grid's runs, the best first; those without a value come last, in the grid's order."""
    measure, rises = choose_measure(grid, runs)
    rows = []
    for member in grid.runs:
        run = runs.get(member.run)
        if run is None:
            rows.append(
                GridRow(member.run, "deleted" if member.run else tr("not queued"), 0, member.settings, None, {})
            )
        else:
            value = run.metrics.get(measure)
            value = value if value is not None and math.isfinite(value) else None
            rows.append(GridRow(run.id, run.state, run.step, member.settings, value, dict(run.metrics)))
    sign = -1 if rises else 1
    return sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0.0)))


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """The last part of each setting's name, or all of it where two would be called alike."""
    last = [axis.rpartition(".")[2] for axis in axes]
    return {axis: name if last.count(name) == 1 else axis for axis, name in zip(axes, last, strict=True)}


def describe(grid: Grid, runs: Mapping[str, Run]) -> dict[str, Any]:
    """The grid with its runs, for `--json`."""
    measure, rises = choose_measure(grid, runs)
    return {
        "name": grid.name,
        "profile": grid.profile,
        "created": grid.created,
        "axes": grid.axes,
        "measure": measure,
        "rises": rises,
        "runs": [row._asdict() for row in list_rows(grid, runs)],
    }
