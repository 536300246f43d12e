"""Group relative policy optimisation: the losses of trl's GRPOTrainer, independent of how a step's replies are
divided."""

from __future__ import annotations

from typing import Any

import torch

from engine.training.methods.base import Batch
from engine.training.methods.grpo import Options
from engine.training.online import advantages
from engine.training.online.method import OnlineMethod


class GRPO(OnlineMethod):
    options: Options  # type: ignore[assignment]

    def advantages(self, rewards: Any) -> Any:
        return advantages.subtract_group_mean(rewards, self.options.generations, self.options.scale_rewards)

    def units(self, batch: Batch) -> float:
        if "prompts" in batch or self.options.loss_type != "dapo":
            return super().units(batch)
        return int(batch["learnt_tokens"])

    def sum_losses(self, values: Any, batch: Batch) -> dict[str, Any]:
        return compute_losses(values, batch, self.options)


def compute_losses(values: Any, batch: Batch, options: Options) -> dict[str, Any]:
    """See `OnlineMethod.sum_losses`."""
    counts = torch.tensor(batch["counts"], dtype=torch.long, device=values.device)  # an empty list would be of floats
    old = values.detach() if batch["old"] is None else batch["old"]
    size = len(values)  # with it, a card need not be waited for
    learnt, advantage = (batch[name].repeat_interleave(counts, output_size=size) for name in ("learnt", "advantages"))
    log_ratios = values - old
    if options.importance_sampling_level == "sequence":
        means = [part.mean() if len(part) else part.sum() for part in log_ratios.split(batch["counts"])]
        log_ratios = (torch.stack(means) if means else log_ratios[:0]).repeat_interleave(counts, output_size=size)
    ratios = log_ratios.exp()
    low, high = 1 - options.epsilon, 1 + (options.epsilon if options.epsilon_high is None else options.epsilon_high)
    each = -torch.min(ratios * advantage, ratios.clamp(low, high) * advantage)
    tokens = learnt.sum()
    clipped = ((ratios < low) & (advantage < 0)) | ((ratios > high) & (advantage > 0))
    found = {"clip_ratio": ((clipped * learnt).sum(), tokens)}
    if options.beta:
        beyond = batch["reference"] - values
        # Schulman's estimate, weighted as with trl's use_bias_correction_kl (DeepSeek-V3.2).
        divergence = (beyond.exp() - beyond - 1) * ratios
        each = each + options.beta * divergence
        found["kl"] = ((divergence.detach() * learnt).sum(), tokens)
    each = each * learnt
    match options.loss_type:
        case "grpo":
            each = each / counts.repeat_interleave(counts, output_size=size)
        case "dr_grpo":
            each = each / options.max_new_tokens
    return {"loss": each.sum(), **found}
