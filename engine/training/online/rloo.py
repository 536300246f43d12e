"""REINFORCE leave-one-out: the loss of trl's RLOOTrainer, independent of how a step's replies are divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.training.methods.base import Batch
from engine.training.methods.rloo import Options
from engine.training.online import advantages
from engine.training.online.method import OnlineMethod
from engine.training.online.rollout import Rollout
from engine.training.preference.replies import sum_sequences


class RLOO(OnlineMethod):
    """Subtracts the divergence from the base from the reward, so it is computed before the loss."""

    options: Options  # type: ignore[assignment]

    @property
    def needs_old_log_probs(self) -> bool:  # type: ignore[override]
        return self.beta > 0

    def shape_rewards(self, rollouts: Sequence[Rollout], rewards: list[float]) -> list[float]:
        if not self.beta:
            return rewards
        learnt = [each.ended or not self.options.mask_truncated for each in rollouts]
        distances = [
            float((each.old - each.reference).sum()) if counts else 0.0
            for each, counts in zip(rollouts, learnt, strict=True)
        ]
        tokens = sum(len(each.old) for each, counts in zip(rollouts, learnt, strict=True) if counts)
        self.metrics.add("train/kl", sum(distances), tokens)
        return [reward - self.beta * distance for reward, distance in zip(rewards, distances, strict=True)]

    def advantages(self, rewards: Any) -> Any:
        return advantages.subtract_mean_of_others(
            rewards, self.options.generations, normalized=self.options.normalize_advantages
        )

    def sum_losses(self, values: Any, batch: Batch) -> dict[str, Any]:
        return compute_losses(values, batch, self.options)


def compute_losses(values: Any, batch: Batch, options: Options) -> dict[str, Any]:
    """See `OnlineMethod.sum_losses`."""
    old = values.detach() if batch["old"] is None else batch["old"]
    learnt, advantage = batch["learnt"], batch["advantages"]
    ratios = (sum_sequences(values - old, batch["counts"]) * learnt).exp()
    low, high = 1 - options.epsilon, 1 + (options.epsilon if options.epsilon_high is None else options.epsilon_high)
    each = -torch.min(ratios * advantage, ratios.clamp(low, high) * advantage)
    clipped = ((ratios < low) & (advantage < 0)) | ((ratios > high) & (advantage > 0))
    return {"loss": each.sum(), "clip_ratio": (clipped.sum(), len(batch["counts"]))}
