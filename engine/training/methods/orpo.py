"""Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): fine-tuning and preference without a
reference."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["orpo"] = "orpo"
    beta: float = option(0.1, help="Weight of the odds ratio beside the cross entropy; the paper's lambda.", gt=0)
    max_prompt: int | None = option(
        None, help="Cut longer prompts at their beginning; none cuts no prompt.", unit="tokens", ge=1
    )
    rows: ClassVar[str] = "pairs"
    method: ClassVar[str] = "engine.training.preference.orpo:ORPO"
