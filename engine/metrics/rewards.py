"""Implicit rewards: what the trainers of DPO, KTO and ORPO measure of preferences.

A reply's implicit reward is β times the log-ratio of its probability to the reference model's (Rafailov et al. 2023).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engine.metrics.metric import Direction, Metric

_HIGHER = ("rewards_accuracy", "rewards_margin")
_NEITHER = ("rewards_chosen", "rewards_rejected", "kl")


def _measured_in_training(sections: Mapping[str, Any]) -> Collection[str]:
    method = sections["method"]
    if method.rows not in ("pairs", "judged") or getattr(method, "scores", False):
        return ()
    kl = ("kl",) if method.kind == "kto" else ()
    nll = ("nll_loss",) if method.kind == "orpo" else ()
    return (*_HIGHER, "rewards_chosen", "rewards_rejected", *kl, *nll)


METRIC = Metric(
    dict.fromkeys(_HIGHER, Direction.HIGHER)
    | dict.fromkeys(_NEITHER, Direction.NEITHER)
    | {"nll_loss": Direction.LOWER},
    measured_in_training=_measured_in_training,
)
