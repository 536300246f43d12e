"""From the rewards of a step's replies to their advantages, as trl's GRPOTrainer and RLOOTrainer have them."""

from __future__ import annotations

from typing import Any

_EPSILON = 1e-4
"""Added to a deviation that is divided by."""


def subtract_group_mean(rewards: Any, generations: int, scale: str) -> Any:
    """[replies]: each reward less the mean of its group, divided by the deviation within the `group`, the `batch`, or by nothing (`none`).

    `rewards` are [replies], those of a prompt side by side.
    """
    groups = rewards.view(-1, generations)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(1, keepdim=True) + _EPSILON)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + _EPSILON)
    return advantages.view(-1)


def subtract_mean_of_others(rewards: Any, generations: int, *, normalized: bool) -> Any:
    """[replies]: each reward less the mean of the others of its group; `normalized` to mean 0 and deviation 1 over all."""
    groups = rewards.view(-1, generations)
    others = (groups.sum(1, keepdim=True) - groups) / (generations - 1)
    advantages = (groups - others).view(-1)
    if normalized:
        advantages = (advantages - advantages.mean()) / (advantages.std() + _EPSILON)
    return advantages
