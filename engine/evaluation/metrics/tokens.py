"""How likely held-out rows are to a model: sums over trained tokens, as training's own evaluation has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from engine.tasks.sufficient_stats import Tally

_LARGEST = 700.0
"""A loss whose exponential is still a number."""


def tally(units: int, loss: float, right: int) -> Tally:
    """Of one row: trained tokens, their summed cross entropy in nats, and how many were the likeliest."""
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
