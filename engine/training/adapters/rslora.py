"""Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732): the scale is alpha / √rank, so that high ranks learn
too."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.LowRankOptions):
    kind: Literal["rslora"] = "rslora"


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. Raises ProblemError when no layer matches the
    targets."""
    return base.attach_low_rank(model, options, use_rslora=True)
