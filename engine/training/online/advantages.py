"""Advantages of a step's replies from their rewards, as in trl's GRPOTrainer and RLOOTrainer."""

from __future__ import annotations

from typing import Any

_EPSILON = 1e-4
"""Added to standard deviations before dividing by them."""


def subtract_group_mean(rewards: Any, generations: int, scale: str) -> Any:
    """[replies]: each reward minus the mean of its group, divided by the standard deviation of the `group` or the
    `batch`, or not divided (`none`).

    `rewards` are [replies], those of a prompt adjacent.
    """
    groups = rewards.view(-1, generations)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(1, keepdim=True) + _EPSILON)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + _EPSILON)
    return advantages.view(-1)


def subtract_mean_of_others(rewards: Any, generations: int, *, normalized: bool) -> Any:
    """[replies]: each reward minus the mean of the others of its group; `normalized` to mean 0 and standard deviation
    1."""
    groups = rewards.view(-1, generations)
    others = (groups.sum(1, keepdim=True) - groups) / (generations - 1)
    advantages = (groups - others).view(-1)
    if normalized:
        advantages = (advantages - advantages.mean()) / (advantages.std() + _EPSILON)
    return advantages
