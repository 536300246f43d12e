"""Odds ratio preference optimisation: the loss of trl's ORPOTrainer, independent of how a global batch is divided.

The cross entropy is a mean over the tokens of all chosen sequences (including prompts, as in the authors' code). The
odds ratio is a mean over pairs, computed from mean log-probabilities per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from engine.training.methods.base import Batch, Row
from engine.training.methods.orpo import Options
from engine.training.preference.replies import ReplyMethod, collate_sequences, make_sequence, sum_sequences


def collate(rows: list[dict[str, list[int]]], flat: bool) -> dict[str, Any]:
    """As `replies.collate_pairs`, but the prompts of chosen sequences have labels too; `replies` are the numbers of
    tokens of the replies."""
    chosen = [make_sequence(row["prompt_ids"], row["chosen_ids"], whole=True) for row in rows]
    rejected = [make_sequence(row["prompt_ids"], row["rejected_ids"]) for row in rows]
    replies = [len(row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
    collated = collate_sequences(chosen + rejected, flat)
    return collated | {"replies": replies, "pairs": len(rows), "rows": len(rows)}


class ORPO(ReplyMethod):
    """Cross entropy of chosen sequences plus the odds ratio of pairs."""

    _tokens = 0.0
    """The number of tokens that the cross entropy of the global batch is a mean over; 0 outside one."""

    def collate(self, rows: list[Row]) -> Batch:
        return collate(rows, self.flat)

    def begin_global_batch(self, micro_batches: list[Batch], step: int) -> list[Batch]:
        self._tokens = self.ranks.sum([sum(map(_chosen_tokens, micro_batches))])[0]
        return micro_batches

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        sums = self._compute_sums(model, batch)
        for name in ("rewards_chosen", "rewards_rejected", "rewards_accuracy", "rewards_margin"):
            self.metrics.add(f"train/{name}", float(sums[name]), batch["pairs"])
        self.metrics.add("train/nll_loss", float(sums["nll"].detach()), _chosen_tokens(batch))
        tokens = self._tokens or max(_chosen_tokens(batch), 1) * self.ranks.world
        return sums["nll"] / tokens + sums["odds"] / units

    def measure(self, batch: Batch) -> dict[str, float]:
        sums = {name: float(value) for name, value in self._compute_sums(self.model, batch).items()}
        tokens = _chosen_tokens(batch)
        loss = sums["nll"] / max(tokens, 1) * batch["pairs"] + sums["odds"]
        return sums | {"loss": loss, "tokens": tokens}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        nll, odds = means.pop("nll") / means.pop("tokens"), means.pop("odds")
        return {**means, "loss": nll + odds, "nll_loss": nll}

    def _compute_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Metrics as sums: `nll` over the tokens of chosen sequences, the others over pairs; `nll` and `odds` have
        gradients."""
        options: Options = self.profile.method  # type: ignore[assignment]
        values = self.token_log_probs(self.head, model, batch)
        pairs, counts, replies = batch["pairs"], batch["counts"], batch["replies"]
        # The last labels of each sequence are the reply's.
        ends = [part[-reply:] for part, reply in zip(values.split(counts), replies, strict=True)] if pairs else []
        means = torch.stack([part.mean() for part in ends]) if pairs else values[:0]
        chosen, rejected = means.split([pairs, pairs])
        odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        good, bad = options.beta * chosen.detach(), options.beta * rejected.detach()
        return {
            "nll": -sum_sequences(values, counts)[:pairs].sum(),
            "odds": -options.beta * logsigmoid(odds).sum(),
            "rewards_chosen": good.sum(),
            "rewards_rejected": bad.sum(),
            "rewards_accuracy": (good > bad).sum(),
            "rewards_margin": (good - bad).sum(),
        }


def _chosen_tokens(batch: Batch) -> int:
    return sum(batch["counts"][: batch["pairs"]])


def _log1mexp(values: Any) -> Any:
    """log(1 - exp(x)) for x < 0, precise everywhere (Mächler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    near = values > -0.6931471805599453
    return torch.where(near, torch.log(-torch.expm1(values)), torch.log1p(-torch.exp(values)))
