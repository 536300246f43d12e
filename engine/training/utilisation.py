"""How much of a card's peak a run uses (MFU): the operations that its tokens need, as a share of what the card could do
in that time. Attention's products of keys and queries are left out, so the share is a lower bound."""

from __future__ import annotations

import re
from typing import Any

from engine.models.quantization import count_values

PEAKS = (
    ("B200", 2250), ("GB200", 2500), ("H200 NVL", 835), ("H200", 989), ("H100 PCIE", 756), ("H100 NVL", 835),
    ("H100", 989), ("GH200", 989), ("H800", 989), ("H20", 148), ("A100", 312), ("A800", 312), ("A40", 150),
    ("A30", 165), ("A10G", 70), ("A10", 125), ("L40S", 362), ("L40", 181), ("L4", 121), ("RTX 6000 ADA", 364),
    ("RTX A6000", 155), ("RTX 5090", 210), ("RTX 4090", 165), ("RTX 3090", 71), ("MI325X", 1307), ("MI300X", 1307),
    ("MI250X", 191.5),
)  # fmt: skip
"""Words of a card's name -> dense bfloat16 operations a second with float32 sums, in 10^12, by its vendor's data sheet.
The first that fits counts. Each half of an MI250X is a card of its own."""
_LESS = re.compile(r"\b(?:LAPTOP|MAX-Q|MOBILE|MIG|D|TI|SUPER)\b")
"""Words of a card that has another peak than its namesake, be it a part of it."""
METHODS = ("sft", "pretrain")
"""Methods whose step is one forward and one backward pass per token."""


def find_peak(label: str, compute: str) -> float | None:
    """The operations a second of the card called `label` in the dtype `compute`; None where they are not known."""
    name = label.upper()
    fits = (peak for part, peak in PEAKS if re.search(rf"(?<![\w-]){part}(?!\w)", name))
    found = None if _LESS.search(name) else next(fits, None)
    return found * 1e12 if found is not None and compute in ("bfloat16", "float16") else None


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
