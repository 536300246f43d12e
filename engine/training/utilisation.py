"""How much of a card's peak a run uses (MFU): the operations that its tokens need, as a share of what the card could do
in that time. Attention's products of keys and queries are left out, so the share is a lower bound."""

from __future__ import annotations

from typing import Any

from engine.hardware.cards import find_peak
from engine.models.quantization import count_values

METHODS = ("sft", "pretrain")
"""Methods whose step is one forward and one backward pass per token."""


def count_operations(model: Any) -> float | None:
    """Operations of a step per token: two per weight forward, two backward for the activations, and two more for each
    trained weight. None for mixtures of experts, whose tokens pass only some of the weights."""
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    looked_up = {id(module.weight) for module in model.modules() if type(module).__name__ == "Embedding"}
    if getattr(text, "tie_word_embeddings", False):
        looked_up = set()  # the output layer multiplies by it
    weights = trained = 0
    for parameter in model.parameters():
        if id(parameter) in looked_up:
            continue
        count = count_values(parameter)
        weights += count
        trained += count if parameter.requires_grad else 0
    return 4.0 * weights + 2.0 * trained


class Utilisation:
    """The share of the peak of all ranks' cards, from their tokens a second."""

    def __init__(self, model: Any, method: str, label: str, compute: str, cards: int) -> None:
        peak = find_peak(label, compute) if method in METHODS else None
        operations = count_operations(model) if peak else None
        self._factor = operations / (peak * cards) if operations and peak else None

    def describe(self, tokens_per_second: float | None) -> dict[str, float | None]:
        """`train/mfu`, where it is known."""
        return {"train/mfu": tokens_per_second * self._factor} if self._factor and tokens_per_second else {}
