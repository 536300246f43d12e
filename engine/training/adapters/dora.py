"""DoRA (Liu et al. 2024, arXiv:2402.09353): the low-rank update changes the direction of each weight's columns, and
their magnitude is trained separately."""

from __future__ import annotations

from typing import Any, Literal

from engine.training.adapters import base


class Options(base.LowRankOptions):
    kind: Literal["dora"] = "dora"


def attach(model: Any, options: Options) -> Any:
    """Wrap `model` in a PeftModel; its own weights are frozen. Raises ProblemError when no layer matches the
    targets."""
    return base.attach_low_rank(model, options, use_dora=True)
