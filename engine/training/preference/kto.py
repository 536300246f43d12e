"""Kahneman-Tversky optimisation: the loss of trl's KTOTrainer, independent of how a global batch is divided.

The baseline of a reply is the divergence of the trained model from the reference, estimated from prompts with
mismatched replies. A row's mismatched reply is that of the row before it in the data set, whatever their batches, and
the estimate is made once per global batch, before its first loss. (trl pairs rows within a micro-batch and estimates in
each.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from engine.training.methods.base import Batch, MethodSetup, Row
from engine.training.methods.kto import Options
from engine.training.preference.reference import ReferenceMethod
from engine.training.preference.replies import collate_sequences, make_sequence


class MismatchedRows:
    """A set of judged rows, each with `other_ids` added: the reply of the row before it; for the first row, that of the
    last."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        other = self._rows[(index - 1) % len(self._rows)]
        return {**self._rows[index], "other_ids": other["completion_ids"]}

    def __getitems__(self, indices: list[int]) -> list[dict[str, list[int]]]:
        return [self[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)


def collate(rows: list[dict[str, list[int]]], flat: bool) -> dict[str, Any]:
    """A micro-batch of `pairs` replies: `good` marks the desirable ones, `chosen` and `rejected` are the numbers of
    those and of all others, and `others` are the same prompts with mismatched replies."""
    own = collate_sequences([make_sequence(row["prompt_ids"], row["completion_ids"]) for row in rows], flat)
    others = collate_sequences([make_sequence(row["prompt_ids"], row["other_ids"]) for row in rows], flat)
    good = torch.tensor([row["label"][0] for row in rows], dtype=torch.bool)
    # Numbers rather than masks, for which a card would have to be waited for.
    numbers = {"chosen": good.nonzero().squeeze(1), "rejected": (~good).nonzero().squeeze(1)}
    return own | {"good": good, **numbers, "others": others, "pairs": len(rows), "rows": len(rows)}


class KTO(ReferenceMethod):
    """The weighted mean loss of the judged replies."""

    def __init__(self, setup: MethodSetup) -> None:
        held_out = None if setup.held_out is None else MismatchedRows(setup.held_out)
        super().__init__(replace(setup, rows=MismatchedRows(setup.rows), held_out=held_out))
        self._kl: float | None = None
        """The estimated divergence for the current global batch; None outside one."""

    def collate(self, rows: list[Row]) -> Batch:
        return collate(rows, self.flat)

    def begin_global_batch(self, micro_batches: list[Batch], step: int) -> list[Batch]:
        distance = 0.0
        with self.memory.catch():
            distance = sum(float(self._compute_distances(self.to_device(batch)).sum()) for batch in micro_batches)
        total, pairs = self.ranks.sum([distance, sum(map(self.units, micro_batches))])
        self._kl = max(0.0, total / max(pairs, 1.0))
        return micro_batches

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        sums = self._compute_sums(model, batch, self._kl)
        for name, count in (("chosen", "good"), ("rejected", "bad")):
            self.metrics.add(f"train/rewards_{name}", float(sums[f"rewards_{name}"]), float(sums[count]))
        for name in ("rewards_accuracy", "kl"):
            self.metrics.add(f"train/{name}", float(sums[name]), batch["pairs"])
        return sums["loss"] / units

    def measure(self, batch: Batch) -> dict[str, float]:
        return {name: float(value) for name, value in self._compute_sums(self.model, batch, None).items()}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        values = {name: means[name] for name in ("loss", "rewards_accuracy", "kl")}
        for name, count in (("chosen", "good"), ("rejected", "bad")):
            if means[count]:
                values[f"rewards_{name}"] = means[f"rewards_{name}"] / means[count]
        if means["good"] and means["bad"]:
            values["rewards_margin"] = values["rewards_chosen"] - values["rewards_rejected"]
        return values

    def _compute_distances(self, batch: Batch) -> Any:
        """[rows]: log-ratios of mismatched replies to the reference; zeros for a loss that does not use them."""
        options: Options = self.profile.method  # type: ignore[assignment]
        if options.loss_type != "kto":
            return torch.zeros(len(batch["good"]))
        with torch.no_grad():
            reference = self.reference_log_probs(batch["others"])
            return self.log_probs(self.model, batch["others"]) - reference

    def _compute_sums(self, model: Any, batch: Batch, kl: float | None) -> dict[str, Any]:
        """Metrics as sums over a micro-batch; `loss` has a gradient. If `kl` is None, it is estimated from these rows
        alone."""
        options: Options = self.profile.method  # type: ignore[assignment]
        if kl is None:
            kl = max(0.0, float(self._compute_distances(batch).sum()) / max(1, batch["pairs"]))
        reference = self.reference_log_probs(batch)
        ratios = self.log_probs(model, batch) - reference
        good = batch["good"].to(ratios.device)
        beta, chosen, rejected = options.beta, ratios[batch["chosen"]], ratios[batch["rejected"]]
        if options.loss_type == "kto":
            losses = 1 - torch.sigmoid(beta * (chosen - kl)), 1 - torch.sigmoid(beta * (kl - rejected))
        else:
            losses = 1 - torch.sigmoid(beta * chosen), torch.sigmoid(beta * rejected)
        weights = options.desirable_weight, options.undesirable_weight
        return {
            "loss": sum(weight * each.sum() for weight, each in zip(weights, losses, strict=True)),
            "rewards_chosen": beta * chosen.detach().sum(),
            "rewards_rejected": beta * rejected.detach().sum(),
            "rewards_accuracy": ((ratios.detach() > 0) == good).sum(),
            "good": good.sum(),
            "bad": (~good).sum(),
            "kl": kl * batch["pairs"],
        }
