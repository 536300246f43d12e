"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and its relatives, by trl's names."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import option
from engine.training.online.options import OnlineOptions


class Options(OnlineOptions):
    kind: Literal["grpo"] = "grpo"
    beta: float = option(
        0.0, help="Weight of the divergence from the base in the loss; 0 needs no second model's passes.", ge=0
    )
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = option(
        "dapo",
        help="What the loss is a mean over: dapo the tokens of a step's replies, grpo the replies, each the mean of "
        "its tokens, dr_grpo the replies, each divided by max_new_tokens.",
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group", help="Divide advantages by the rewards' standard deviation in their group, in the step, or not at all."
    )
    importance_sampling_level: Literal["token", "sequence"] = option(
        "token", help="What is clipped: the probability of a token, or of a reply (GSPO, Zheng et al. 2025)."
    )
    method: ClassVar[str] = "engine.training.online.grpo:GRPO"
