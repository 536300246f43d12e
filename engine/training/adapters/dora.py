"""DoRA (Liu et al. 2024, arXiv:2402.09353): the low-rank update turns each weight's columns, and their length is trained apart."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.LowRankOptions):
    kind: Literal["dora"] = "dora"


def attach(model: Any, options: Options) -> Any:
    """A PeftModel around `model`, whose own weights are frozen. Raises ProblemError when no layer has such a name."""
    return base.attach_low_rank(model, options, use_dora=True)
