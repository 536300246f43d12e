"""What a metric is: its names, which way each improves, and how it is worked out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from engine.metrics import METRICS
from engine.tasks.answer import Answer
from engine.tasks.direction import Direction
from engine.tasks.sufficient_stats import Tally

__all__ = ["Direction", "Metric", "load_metric"]


def _never(sections: Mapping[str, Any]) -> Collection[str]:
    return ()


@dataclass(frozen=True)
class Metric:
    """One row of `engine.metrics.METRICS`, defined as `METRIC` in its module. It has several names where one tally
    gives several numbers."""

    directions: Mapping[str, Direction]
    """Every name, and which way it improves. A `*` in a name stands for any text."""
    metrics: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    """The values by name, from the sums of tallies; None for what only a trainer works out."""
    tally: Callable[[Answer], Tally] | None = None
    """What a reply adds to the sums, nothing where it lacks what the metric needs; None for what is not measured of
    replies."""
    measured_in_training: Callable[[Mapping[str, Any]], Collection[str]] = _never
    """The names that an evaluation during training gives, by the sections of the run's profile."""


def load_metric(name: str) -> Metric:
    """The row of that name in `METRICS`."""
    metric: Metric = importlib.import_module(METRICS[name]).METRIC
    return metric
