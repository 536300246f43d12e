"""Rewards of a model's own replies: what the trainers of GRPO and RLOO measure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engine.metrics.metric import Direction, Metric


def _measured_in_training(sections: Mapping[str, Any]) -> Collection[str]:
    return ("reward", "completion_length", "completions_cut") if sections["method"].rows == "prompts" else ()


METRIC = Metric(
    {
        "reward": Direction.HIGHER,
        "completions_cut": Direction.LOWER,
        "reward_zero_std": Direction.LOWER,
        **dict.fromkeys(("completion_length", "reward_std", "entropy", "clip_ratio"), Direction.NEITHER),
    },
    measured_in_training=_measured_in_training,
)
