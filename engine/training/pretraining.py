"""The trainer of pretraining: supervised training of every token, measured in perplexity too."""

from __future__ import annotations

import math

from engine.training.supervised import SupervisedTrainer

_LARGEST = 700.0
"""Beyond it a loss's exponential is no number any more."""


class PretrainingTrainer(SupervisedTrainer):
    """Adds `eval/perplexity`: the exponential of the mean loss over all trained held-out tokens."""

    def held_out_values(self, means: dict[str, float]) -> dict[str, float]:
        return means | {"perplexity": math.exp(min(means["loss"], _LARGEST))}
