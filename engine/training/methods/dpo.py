"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its relatives, by trl's names."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from engine.options.base import Variant, option

SMOOTHED = ("robust", "exo_pair")
"""Losses that take a label smoothing."""


class Options(Variant):
    kind: Literal["dpo"] = "dpo"
    beta: float = option(0.1, help="How much leaving the reference costs; in ipo the paper's tau.", gt=0)
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] = option("sigmoid", help="The loss of a pair, by trl's name.")
    label_smoothing: float = option(
        0.0, help="robust: share of pairs whose preference is taken to be wrong; exo_pair: its epsilon.", ge=0, lt=0.5
    )
    discopop_tau: float = option(0.05, help="Temperature of discopop.", gt=0)
    max_prompt: int | None = option(
        None, help="Cut longer prompts at their beginning; none cuts no prompt.", unit="tokens", ge=1
    )
    rows: ClassVar[str] = "pairs"
    method: ClassVar[str] = "engine.training.preference.dpo:DPO"

    @model_validator(mode="after")
    def _smoothed(self) -> Options:
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(f"label_smoothing is for loss_type {' and '.join(SMOOTHED)}, not for {self.loss_type}")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs a label_smoothing above 0, such as 0.001")
        return self
