"""Next-token cross entropy: the trainer of every method that trains on tokens with labels."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainingArguments

from engine.models.loss import PickedHead, cross_entropy
from engine.models.segments import Segments
from engine.prep.batching import collate_flat, collate_padded
from engine.training import neftune
from engine.training.assemble import Parts
from engine.training.trainer import Steered


class SupervisedTrainer(Steered, Trainer):  # type: ignore[misc]
    """Cross entropy over trained positions, a mean over those of the global batch; the head sees no others."""

    def __init__(self, parts: Parts) -> None:
        collate = collate_flat if parts.segments else collate_padded
        super().__init__(parts, collate=collate, args=TrainingArguments(**parts.arguments))
        settings = parts.job.profile.training
        self.head = PickedHead(self.model, parts.segments or Segments(), early=settings.optimizations)
        self._smoothing = settings.label_smoothing
        neftune.install(self.model, settings.neftune, self.head.segments)
        self.loss_is_scaled_for_ga = True

    def units(self, batch: dict[str, Any]) -> int:
        return len(batch["targets"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = self.head.logits(model, inputs)
        # DDP takes the mean of the ranks' gradients, and the loss is to be a sum over ranks.
        return cross_entropy(logits, inputs["targets"], self._smoothing) / num_items_in_batch * self.ranks.world

    def measure(self, inputs: dict[str, Any]) -> dict[str, float]:
        logits = self.head.logits(self.model, inputs)
        right = (logits.argmax(-1) == inputs["targets"]).sum()
        return {"loss": cross_entropy(logits, inputs["targets"]).item(), "token_accuracy": right.item()}

    def ordinary(self) -> None:
        self.head.segments.lengths = None
