"""A reward model: a score for a reply, learnt from pairs (Bradley and Terry 1952; Stiennon et al. 2020,
arXiv:2009.01325)."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["reward"] = "reward"
    center_rewards_coefficient: float | None = option(
        None, help="Weight of a penalty on scores away from zero; 0.01 is usual.", gt=0
    )
    max_prompt: int | None = option(
        None, help="Cut longer prompts at their beginning; none cuts no prompt.", unit="tokens", ge=1
    )
    rows: ClassVar[str] = "pairs"
    method: ClassVar[str] = "engine.training.preference.reward:Reward"
    scores: ClassVar[bool] = True
    """The model returns a number instead of text."""
