"""Liger's kernels (https://github.com/linkedin/Liger-Kernel): norms, rotary positions and gated feed-forwards as one Triton kernel each.

Its cross entropy is left out: the output layer here sees trained positions alone, which saves more.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from engine.protocol.messages import Problem, ProblemError

_KERNELS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def is_enabled(setting: bool | str, device_kind: str) -> bool:
    """Whether to use it, of `training.liger`. Raises ProblemError where it was asked for and cannot be had."""
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
    """Put the kernels into `model`; a family that Liger does not know stays as it is, which Liger says in the log."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, _KERNELS)
