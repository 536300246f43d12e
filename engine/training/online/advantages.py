"""From the rewards of a step's replies to their advantages, as trl's GRPOTrainer and RLOOTrainer have them."""

from __future__ import annotations

from typing import Any

_SMALL = 1e-4
"""Added to a deviation that is divided by."""


def of_groups(rewards: Any, generations: int, scale: str) -> Any:
    """[replies]: each reward less the mean of its group, divided by the deviation within the `group`, the `batch`, or by nothing (`none`).

    `rewards` are [replies], those of a prompt side by side.
    """
    grouped = rewards.view(-1, generations)
    advantages = grouped - grouped.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (grouped.std(1, keepdim=True) + _SMALL)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + _SMALL)
    return advantages.view(-1)


def leaving_one_out(rewards: Any, generations: int, *, normalized: bool) -> Any:
    """[replies]: each reward less the mean of the others of its group; `normalized` to mean 0 and deviation 1 over all."""
    grouped = rewards.view(-1, generations)
    others = (grouped.sum(1, keepdim=True) - grouped) / (generations - 1)
    advantages = (grouped - others).view(-1)
    if normalized:
        advantages = (advantages - advantages.mean()) / (advantages.std() + _SMALL)
    return advantages
