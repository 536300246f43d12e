"""A reward model's scores of preference pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engine.metrics.metric import Direction, Metric
from engine.tasks.sufficient_stats import Tally

_SCORES = ("score_chosen", "score_rejected")


def tally(chosen: float, rejected: float) -> Tally:
    """Of the scores of one pair."""
    return {"pairs": 1, "right": chosen > rejected, "chosen": chosen, "rejected": rejected}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`reward_accuracy`: the share of pairs whose chosen reply scores higher. `reward_margin`: the mean difference of
    the two scores. Training gives the same values as `accuracy` and `margin`."""
    pairs = sums["pairs"]
    return {
        "reward_accuracy": sums["right"] / pairs,
        "reward_margin": (sums["chosen"] - sums["rejected"]) / pairs,
        "score_chosen": sums["chosen"] / pairs,
        "score_rejected": sums["rejected"] / pairs,
    }


def _measured_in_training(sections: Mapping[str, Any]) -> Collection[str]:
    return ("accuracy", "margin", *_SCORES) if getattr(sections["method"], "scores", False) else ()


METRIC = Metric(
    dict.fromkeys(("reward_accuracy", "reward_margin", "accuracy", "margin"), Direction.HIGHER)
    | dict.fromkeys(_SCORES, Direction.NEITHER),
    metrics,
    measured_in_training=_measured_in_training,
)
