"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): replies that were judged one by one."""

from __future__ import annotations

from typing import ClassVar, Literal

from engine.options.base import Variant, option


class Options(Variant):
    kind: Literal["kto"] = "kto"
    beta: float = option(0.1, help="How much leaving the reference costs.", gt=0)
    loss_type: Literal["kto", "apo_zero_unpaired"] = option("kto", help="The loss of a judgement, by trl's name.")
    desirable_weight: float = option(1.0, help="Weight of good replies, against an uneven set.", gt=0)
    undesirable_weight: float = option(1.0, help="Weight of bad replies, against an uneven set.", gt=0)
    max_prompt: int | None = option(
        None, help="Cut longer prompts at their beginning; none cuts no prompt.", unit="tokens", ge=1
    )
    rows: ClassVar[str] = "judged"
    method: ClassVar[str] = "engine.training.preference.kto:KTO"
