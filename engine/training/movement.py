"""Whether training moves the weights at all: a sample of them is compared with their first values.

Updates may be lost without a sign, in the rounding of 16 bits or by a rate that is far too low. The sample is compared
only where the device is waited for anyway: after an evaluation or a checkpoint, and at the end.
"""

from __future__ import annotations

from typing import Any

SAMPLED = 32
"""Values of each weight that are looked at, evenly spread."""


class Movement:
    """The share of sampled values that differ from those at the beginning of the attempt."""

    def __init__(self, model: Any) -> None:
        self._first = [(weight, _sample(weight)) for weight in model.parameters() if weight.requires_grad]
        self.share: float | None = None
        """As of the last comparison, until it is taken; None without one."""

    def compare(self) -> None:
        import torch

        now = [(_sample(weight), first) for weight, first in self._first]
        # A weight may have moved to another device, or be divided otherwise: then nothing can be said about it.
        pairs = [(own, first) for own, first in now if own.shape == first.shape and own.device == first.device]
        whole = sum(int(first.numel()) for _, first in pairs)
        if whole:
            changed = [(own != first).sum().to(pairs[0][1].device) for own, first in pairs]
            self.share = float(torch.stack(changed).sum()) / whole

    def take(self) -> dict[str, float | None]:
        """`train/weights_changed`, once after each comparison."""
        share, self.share = self.share, None
        return {} if share is None else {"train/weights_changed": share}


def _sample(weight: Any) -> Any:
    """A copy of some values; of a weight that is divided among ranks, of this rank's share."""
    own = getattr(weight, "ds_tensor", weight).detach()  # DeepSpeed's share; the weight itself is there or empty
    own = (own.to_local() if hasattr(own, "to_local") else own).reshape(-1)
    return own[:: max(1, own.numel() // SAMPLED)][:SAMPLED].clone()
