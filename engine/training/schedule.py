"""Learning-rate schedules of transformers: warm-up, then the shape that the profile names."""

from __future__ import annotations

import math
from typing import Any

from engine.options.training import TrainingOptions

NAMES = {
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}
"""A profile's name -> transformers' name."""


def make_schedule(settings: TrainingOptions, optimizer: Any, steps: int) -> Any:
    """A torch LambdaLR for a run of `steps` optimiser steps."""
    from transformers import get_scheduler

    warmup = int(settings.warmup) if settings.warmup >= 1 else math.ceil(steps * settings.warmup)
    return get_scheduler(
        NAMES[settings.scheduler],
        optimizer=optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=_arguments(settings, steps, warmup),
    )


def _arguments(settings: TrainingOptions, steps: int, warmup: int) -> dict[str, Any]:
    """A shape's arguments besides warm-up and last step."""
    match settings.scheduler:
        case "polynomial":
            return {"power": settings.power, "lr_end": 0.0}
        case "wsd":
            return {"num_decay_steps": max(1, min(round(steps * settings.decay_share), steps - warmup))}
    return {}


def rebase_schedule(schedule: Any, settings: TrainingOptions, steps: int) -> Any:
    """A new schedule at the same step as `schedule`, with the learning rate of `settings` and `steps` as last step."""
    optimizer, position, base = schedule.optimizer, schedule.last_epoch, settings.learning_rate
    optimizer.defaults["lr"] = base  # the polynomial is relative to it
    for group in optimizer.param_groups:
        group["initial_lr"] = base
    rebased = make_schedule(settings, optimizer, steps)
    rebased.last_epoch = position
    for group, shape in zip(optimizer.param_groups, rebased.lr_lambdas, strict=True):
        group["lr"] = base * shape(position)
    rebased.base_lrs = [base] * len(rebased.base_lrs)
    rebased._last_lr = [group["lr"] for group in optimizer.param_groups]
    return rebased
