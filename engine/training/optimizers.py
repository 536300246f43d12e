"""Optimisers and learning-rate shapes by the names that a profile uses."""

from __future__ import annotations

from engine.protocol.messages import Problem, ProblemError

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
"""A profile's name -> transformers' name."""
GPU_ONLY = frozenset({"adamw_8bit", "paged_adamw_8bit"})
SCHEDULERS = {
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
    "constant": "constant_with_warmup",
}


def check(name: str, device_kind: str) -> None:
    """Raises ProblemError for an optimiser that does not work on this device.

    On a CPU bitsandbytes' paged optimisers quietly become unpaged ones, and its 8-bit ones fail at the first step.
    """
    if name in GPU_ONLY and device_kind == "cpu":
        raise ProblemError(
            Problem(
                title=f"training.optimizer {name} needs a GPU",
                cause="this job runs on the CPU",
                hint="set training.optimizer to adamw, or to adafactor to save memory",
            )
        )
