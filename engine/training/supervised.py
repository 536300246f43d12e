"""Next-token cross entropy: the loss of the methods that train on labelled tokens."""

from __future__ import annotations

import math
from typing import Any

from engine.models.loss import PickedHead, token_losses
from engine.models.segments import Segments
from engine.prep.batching import collate_flat, collate_padded
from engine.training import neftune
from engine.training.methods.base import Batch, Method, MethodSetup, Row

_LARGEST = 700.0
"""The exponential of a larger loss overflows."""


class Supervised(Method):
    """Mean cross entropy over the trained positions of the global batch. The output layer computes no other
    positions."""

    records_rows = True

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        settings = self.profile.training
        self._flat = setup.segments is not None
        self.head = PickedHead(self.model, setup.segments or Segments(), settings.optimizations, self.device.autocast)
        self._smoothing = settings.label_smoothing
        neftune.install(self.model, settings.neftune, self.head.segments)

    def collate(self, rows: list[Row]) -> Batch:
        return (collate_flat if self._flat else collate_padded)(rows)

    def units(self, batch: Batch) -> float:
        return len(batch["targets"])

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        (losses,) = self.head.compute(
            model,
            batch,
            lambda logits, targets: (token_losses(logits, targets, self._smoothing),),
        )
        if self.row_losses is not None:
            self.row_losses.append((losses.detach(), batch["trained"]))
        return losses.sum() / units

    def measure(self, batch: Batch) -> dict[str, float]:
        losses, right = self.head.compute(
            self.model,
            batch,
            lambda logits, targets: (token_losses(logits, targets), logits.argmax(-1) == targets),
        )
        return {"loss": losses.sum().item(), "token_accuracy": right.sum().item()}

    def expect_plain_batches(self) -> None:
        self.head.segments.lengths = None


class Pretraining(Supervised):
    """Adds `eval/perplexity`: the exponential of the mean loss over all trained held-out tokens."""

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return means | {"perplexity": math.exp(min(means["loss"], _LARGEST))}
