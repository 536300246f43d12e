"""Reward models: the loss of trl's RewardTrainer over the pairs of a global batch, however it is split.

The model is transformers' own for sequence classification with one label, so whoever loads the checkpoint gets its scores with no help from us;
that class finds the last token by its padding, so rows are padded here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import Trainer, TrainingArguments

from engine.training.assemble import Parts
from engine.training.methods.reward import Options
from engine.training.preference.replies import switch_dropout_off
from engine.training.trainer import Steered


def collate(rows: list[dict[str, list[int]]], padding: int) -> dict[str, Any]:
    """All chosen sequences, then all rejected ones, [2 × pairs, longest]; a single token that trains nothing where there is no pair."""
    sequences = [
        torch.tensor(row["prompt_ids"] + row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows
    ] or [torch.tensor([0])]
    masks = [torch.ones_like(each) for each in sequences]
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(masks, batch_first=True),
        "pairs": len(rows),
        "rows": len(rows),
        "tokens": sum(map(len, sequences)),
    }


class RewardTrainer(Steered, Trainer):  # type: ignore[misc]
    """The mean over pairs of how unlikely their scores make the preference."""

    def __init__(self, parts: Parts) -> None:
        switch_dropout_off(parts)
        padding = parts.job.tokenizer.pad_token_id
        parts.model.config.pad_token_id = padding
        super().__init__(parts, collate=partial(collate, padding=padding), args=TrainingArguments(**parts.arguments))
        self.loss_is_scaled_for_ga = True

    def units(self, batch: dict[str, Any]) -> int:
        return int(batch["pairs"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        summed = self._summed(model, inputs)
        for name in ("accuracy", "margin"):
            self.note(f"train/{name}", float(summed[name]), inputs["pairs"])
        # DDP takes the mean of the ranks' gradients, and the loss is to be a sum over ranks.
        return summed["loss"] / num_items_in_batch * self.ranks.world

    def measure(self, inputs: dict[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in self._summed(self.model, inputs).items()}

    def _summed(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Sums over the pairs of a micro-batch, by metric; `loss` with its gradient."""
        options: Options = self.profile.method  # type: ignore[assignment]
        pairs = inputs["pairs"]
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        scores = model(**asked, use_cache=False).logits.squeeze(-1).float()
        chosen, rejected = scores[:pairs], scores[pairs : 2 * pairs]
        loss = -logsigmoid(chosen - rejected).sum()
        if options.center_rewards_coefficient is not None:
            loss = loss + options.center_rewards_coefficient * ((chosen + rejected) ** 2).sum()
        return {
            "loss": loss,
            "accuracy": (chosen > rejected).sum(),
            "margin": (chosen - rejected).detach().sum(),
            "score_chosen": chosen.detach().sum(),
            "score_rejected": rejected.detach().sum(),
        }
