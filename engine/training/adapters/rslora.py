"""Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732): the update is scaled by alpha / √rank, so that high ranks learn too."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.LowRankOptions):
    kind: Literal["rslora"] = "rslora"


def attach(model: Any, options: Options) -> Any:
    """A PeftModel around `model`, whose own weights are frozen. Raises ProblemError when no layer has such a name."""
    return base.attach_low_rank(model, options, use_rslora=True)
