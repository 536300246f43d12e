"""Supervised fine-tuning: next-token cross entropy on the replies of a conversation."""

from __future__ import annotations

from typing import Any, Literal

from engine.protocol.options import Variant, option


class Options(Variant):
    kind: Literal["sft"] = "sft"
    loss_on: Literal["assistant", "all"] = option(
        "assistant", help="Which tokens are trained: the assistant's turns with their end, or everything."
    )


def build(**arguments: Any) -> Any:
    """The trainer of this method; `arguments` are `engine.training.trainer.Steered`'s."""
    from transformers import Trainer

    from engine.training.loss import PickedHead, cross_entropy
    from engine.training.trainer import Steered

    class SupervisedTrainer(Steered, Trainer):
        """Cross entropy over trained positions; the head sees no others."""

        def __init__(self, *, segments: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.head = PickedHead(self.model, segments)
            self.loss_is_scaled_for_ga = True

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            logits = self.head.logits(model, inputs)
            # DDP takes the mean of the ranks' gradients, and the loss is to be a sum over ranks.
            return cross_entropy(logits, inputs["targets"]) / num_items_in_batch * self.ranks.world

    return SupervisedTrainer(**arguments)
