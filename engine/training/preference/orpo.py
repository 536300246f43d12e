"""Odds ratio preference optimisation: the loss of trl's ORPOTrainer over a global batch, however it is split.

The cross entropy is a mean over the tokens of all chosen sequences (prompts included, as the authors' own code has it), the odds
ratio a mean over pairs, of log-probabilities a token.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from engine.training.assemble import Parts
from engine.training.methods.orpo import Options
from engine.training.preference.replies import ReplyTrainer, collate_sequences, sequence, sums


def collate(rows: list[dict[str, list[int]]], flat: bool) -> dict[str, Any]:
    """Pairs as `replies.collate_pairs` has them, but the prompts of chosen sequences have labels too; `replies` are the tokens of each reply."""
    chosen = [sequence(row["prompt_ids"], row["chosen_ids"], whole=True) for row in rows]
    rejected = [sequence(row["prompt_ids"], row["rejected_ids"]) for row in rows]
    replies = [len(row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
    collated = collate_sequences(chosen + rejected, flat)
    return collated | {"replies": replies, "pairs": len(rows), "rows": len(rows)}


class ORPOTrainer(ReplyTrainer):
    """Cross entropy on chosen sequences and the odds ratio of pairs."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts, partial(collate, flat=parts.segments is not None))
        self._window_tokens = 0.0
        """Tokens that the cross entropy of the global batch is a mean over; 0 outside one."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches, pairs = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._window_tokens = self.ranks.sum([sum(map(_chosen_tokens, batches))])[0]
        return batches, pairs

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        summed = self._summed(model, inputs)
        for name in ("rewards_chosen", "rewards_rejected", "rewards_accuracy", "rewards_margin"):
            self.note(f"train/{name}", float(summed[name]), inputs["pairs"])
        self.note("train/nll_loss", float(summed["nll"].detach()), _chosen_tokens(inputs))
        tokens = self._window_tokens or max(_chosen_tokens(inputs), 1) * self.ranks.world
        # DDP takes the mean of the ranks' gradients, and the loss is to be a sum over ranks.
        return (summed["nll"] / tokens + summed["odds"] / num_items_in_batch) * self.ranks.world

    def measure(self, inputs: dict[str, Any]) -> dict[str, float]:
        summed = {name: float(value) for name, value in self._summed(self.model, inputs).items()}
        tokens = _chosen_tokens(inputs)
        loss = summed["nll"] / max(tokens, 1) * inputs["pairs"] + summed["odds"]
        return summed | {"loss": loss, "tokens": tokens}

    def held_out_values(self, means: dict[str, float]) -> dict[str, float]:
        nll, odds = means.pop("nll") / means.pop("tokens"), means.pop("odds")
        return {**means, "loss": nll + odds, "nll_loss": nll}

    def _summed(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Sums by metric: `nll` over the tokens of chosen sequences, all else over pairs; `nll` and `odds` with their gradients."""
        options: Options = self.profile.method  # type: ignore[assignment]
        values = self.token_log_probs(self.head, model, inputs)
        pairs, counts, replies = inputs["pairs"], inputs["counts"], inputs["replies"]
        # Of each sequence the last labels are the reply's.
        ends = [part[-reply:] for part, reply in zip(values.split(counts), replies, strict=True)] if pairs else []
        means = torch.stack([part.mean() for part in ends]) if pairs else values[:0]
        chosen, rejected = means.split([pairs, pairs])
        odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        good, bad = options.beta * chosen.detach(), options.beta * rejected.detach()
        return {
            "nll": -sums(values, counts)[:pairs].sum(),
            "odds": -options.beta * logsigmoid(odds).sum(),
            "rewards_chosen": good.sum(),
            "rewards_rejected": bad.sum(),
            "rewards_accuracy": (good > bad).sum(),
            "rewards_margin": (good - bad).sum(),
        }


def _chosen_tokens(inputs: dict[str, Any]) -> int:
    return sum(inputs["counts"][: inputs["pairs"]])


def _log1mexp(values: Any) -> Any:
    """log(1 - exp(x)) of x < 0, precise near 0 and far from it (Mächler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    near = values > -0.6931471805599453
    return torch.where(near, torch.log(-torch.expm1(values)), torch.log1p(-torch.exp(values)))
