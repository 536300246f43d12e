"""LoRA (Hu et al. 2021, arXiv:2106.09685): a trained low-rank update beside each frozen linear layer."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.LowRankOptions):
    kind: Literal["lora"] = "lora"


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. Raises ProblemError when no layer matches the
    targets."""
    return base.attach_low_rank(model, options)
