"""How far a model has moved from its base on neutral prompts and texts, measured by `engine.training.drift`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engine.metrics.metric import Direction, Metric

KL, PERPLEXITY, CHANGED = "drift_kl", "drift_perplexity", "drift_changed"
STOPS, FORMAT, LANGUAGE = "drift_stops", "drift_format", "drift_language"

DIRECTIONS = {
    KL: Direction.LOWER,
    PERPLEXITY: Direction.LOWER,
    CHANGED: Direction.LOWER,
    STOPS: Direction.HIGHER,
    FORMAT: Direction.HIGHER,
    LANGUAGE: Direction.HIGHER,
}


def _measured_in_training(sections: Mapping[str, Any]) -> Collection[str]:
    return tuple(DIRECTIONS) if sections["evaluation"].drift else ()


METRIC = Metric(DIRECTIONS, measured_in_training=_measured_in_training)
