"""Reward models: the loss of trl's RewardTrainer, independent of how a global batch is divided.

The model is transformers' class for sequence classification with one label, so transformers alone can load and use the
checkpoint; that class finds the last token by the padding, so rows are padded here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from engine.training.methods.base import Batch, Method, MethodSetup, Row
from engine.training.methods.reward import Options
from engine.training.preference.replies import disable_dropout


def collate(rows: list[dict[str, list[int]]], padding: int) -> dict[str, Any]:
    """All chosen sequences, then all rejected ones, [2 × pairs, longest]; a single untrained token when there are no
    pairs."""
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


class Reward(Method):
    """The mean over pairs of the negative log-likelihood of the preference, given the two scores."""

    def __init__(self, setup: MethodSetup) -> None:
        disable_dropout(setup)
        super().__init__(setup)
        self._padding = self.job.tokenizer.pad_token_id
        self.model.config.pad_token_id = self._padding

    def collate(self, rows: list[Row]) -> Batch:
        return collate(rows, self._padding)

    def units(self, batch: Batch) -> float:
        return int(batch["pairs"])

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        sums = self._compute_sums(model, batch)
        for name in ("accuracy", "margin"):
            self.metrics.add(f"train/{name}", float(sums[name]), batch["pairs"])
        return sums["loss"] / units

    def measure(self, batch: Batch) -> dict[str, float]:
        return {name: float(value) for name, value in self._compute_sums(self.model, batch).items()}

    def _compute_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Metrics as sums over the pairs of a micro-batch; `loss` has a gradient."""
        options: Options = self.profile.method  # type: ignore[assignment]
        pairs = batch["pairs"]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        scores = model(**inputs, use_cache=False).logits.squeeze(-1).float()
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
