"""How likely held-out rows are to a model: sums over trained tokens, the same as those of evaluation during
training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from engine.metrics.metric import Direction, Metric
from engine.tasks.sufficient_stats import Tally

_LARGEST = 700.0
"""A loss whose exponential is still a finite number."""


def tally(units: int, loss: float, right: int) -> Tally:
    """Of one row: trained tokens, their summed cross entropy in nats, and how many of them were the likeliest."""
    return {"units": units, "loss": loss, "right": right}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`loss` is a mean over the trained tokens of all rows, `perplexity` its exponential, `token_accuracy` a share."""
    units = sums["units"]
    loss = sums["loss"] / units
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, _LARGEST)),
        "token_accuracy": sums["right"] / units,
    }


def _measured_in_training(sections: Mapping[str, Any]) -> Collection[str]:
    method = sections["method"]
    if method.rows == "prompts":
        return ()  # replies are rewarded; held-out rows have no loss
    if method.rows != "tokens":
        return ("loss",)
    return ("loss", "token_accuracy", *(("perplexity",) if method.kind == "pretrain" else ()))


METRIC = Metric(
    {"loss": Direction.LOWER, "perplexity": Direction.LOWER, "token_accuracy": Direction.HIGHER},
    metrics,
    measured_in_training=_measured_in_training,
)
