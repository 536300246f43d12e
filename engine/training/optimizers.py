"""Optimisers and learning-rate shapes by the names that a profile uses."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from engine.protocol.messages import Problem, ProblemError
from engine.training.options import TrainingOptions

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""A profile's name -> transformers' name. `make` makes the others."""
GPU_ONLY = frozenset({"adamw_8bit", "paged_adamw", "paged_adamw_8bit"})
SCHEDULERS = {
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}


def check(name: str, device_kind: str) -> None:
    """Raises ProblemError for an optimiser that does not work on this device.

    On a CPU bitsandbytes' paged optimisers quietly become unpaged ones, and its 8-bit ones fail at the first step.
    """
    if name in GPU_ONLY and device_kind == "cpu":
        raise ProblemError(
            Problem(
                code="device.unsupported",
                title=f"training.optimizer {name} needs a GPU",
                cause="this job runs on the CPU",
                hint="set training.optimizer to adamw, or to adafactor to save memory",
            )
        )


def make(settings: TrainingOptions, model: Any, decayed: Collection[str]) -> Any:
    """The optimiser of `model`'s trained weights, where transformers has no name for it; else None. `decayed` names the weights
    that weight decay is for."""
    import torch

    from engine.training.muon import MuonAdamW, grouped

    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(grouped(model, decayed, settings.weight_decay), lr=settings.learning_rate)
        case "muon":
            return MuonAdamW(grouped(model, decayed, settings.weight_decay), settings.learning_rate)
    return None


def shape(settings: TrainingOptions, steps: int, warmup: int) -> dict[str, Any]:
    """What the scheduler wants to know besides warm-up and last step: arguments of transformers' function of its name."""
    match settings.scheduler:
        case "polynomial":
            return {"power": settings.power, "lr_end": 0.0}
        case "wsd":
            return {"num_decay_steps": max(1, min(round(steps * settings.decay_share), steps - warmup))}
    return {}
