"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740): a reply's reward minus the mean of the prompt's
other replies."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import option
from engine.training.online.options import OnlineOptions


class Options(OnlineOptions):
    kind: Literal["rloo"] = "rloo"
    beta: float = option(
        0.05, help="What leaving the base costs of the reward; 0 needs no second model's passes.", ge=0
    )
    normalize_advantages: bool = option(False, help="Give a step's advantages the mean 0 and the deviation 1.")
    method: ClassVar[str] = "engine.training.online.rloo:RLOO"
