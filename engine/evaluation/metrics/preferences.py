"""A reward model on pairs of replies, as its training's own evaluation has it."""

from __future__ import annotations

from collections.abc import Mapping

from engine.tasks.sufficient_stats import Tally


def tally(chosen: float, rejected: float) -> Tally:
    """Of one pair's scores."""
    return {"pairs": 1, "right": chosen > rejected, "chosen": chosen, "rejected": rejected}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`reward_accuracy`: the share of pairs whose chosen reply scores higher; `reward_margin`: by how much, on average."""
    pairs = sums["pairs"]
    return {
        "reward_accuracy": sums["right"] / pairs,
        "reward_margin": (sums["chosen"] - sums["rejected"]) / pairs,
        "score_chosen": sums["chosen"] / pairs,
        "score_rejected": sums["rejected"] / pairs,
    }
