"""Liger's kernels (https://github.com/linkedin/Liger-Kernel): norms, rotary positions and gated feed-forward layers,
each as one Triton kernel.

Its cross entropy is not used: the output layer here computes only trained positions, which saves more.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from engine.protocol.messages import Problem, ProblemError

_KERNELS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def is_enabled(setting: bool | str, device_kind: str) -> bool:
    """Whether to use Liger, for a value of `training.liger`. Raises ProblemError where the profile requires it and it
    is unavailable."""
    installed = find_spec("liger_kernel") is not None
    if setting == "auto":
        return device_kind == "cuda" and installed
    if setting and device_kind != "cuda":
        raise ProblemError(
            Problem(
                code="device.unsupported",
                title="training.liger needs an NVIDIA or AMD GPU",
                cause=f"this job runs on {device_kind}",
                hint="set training.liger to auto or false",
            )
        )
    if setting and not installed:
        raise ProblemError(
            Problem(
                code="package.missing",
                title="training.liger needs the package liger-kernel",
                cause="it is not installed in this environment",
                hint="pip install liger-kernel, or set training.liger to auto",
            )
        )
    return bool(setting)


def install(model: Any) -> None:
    """Install the kernels in `model`; a family that Liger does not support is left unchanged, which Liger logs."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, _KERNELS)
