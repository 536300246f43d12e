"""Applies a profile's speed settings on this machine, or rejects them with an error that names the setting."""

from __future__ import annotations

import os
from typing import Any

from engine.options.training import TrainingOptions
from engine.prep.batching import GlobalBatches
from engine.protocol.messages import Problem, ProblemError
from engine.training import compiling, liger
from engine.training.job import Job
from engine.training.methods.base import Method
from engine.training.optimizer_factory import check_optimizer

MAX_WORKERS = 4
"""Loader processes per rank with `auto`, at most: rows are tokens already, so a few keep any device busy."""


def check_device(settings: TrainingOptions, device_kind: str) -> None:
    """Raises ProblemError for a setting that this device does not support."""
    check_optimizer(settings.optimizer, device_kind)
    if settings.optimizations:
        liger.is_enabled(settings.liger, device_kind)
    if settings.tf32:
        _check_tf32(device_kind)


def _check_tf32(device_kind: str) -> None:
    import torch

    # torch calls AMD's cards cuda too, and most have no TF32.
    if device_kind == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability()[0] >= 8:
        return
    label = torch.cuda.get_device_name() if device_kind == "cuda" else f"this {device_kind}"
    raise ProblemError(
        Problem(
            code="device.unsupported",
            title=f"{label} has no TF32",
            cause="training.tf32 needs an NVIDIA card of the Ampere generation or later",
            hint="set training.tf32 to false",
        )
    )


def configure_torch(settings: TrainingOptions) -> None:
    """Apply settings that must be set before any computation."""
    import torch

    if settings.tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def optimize_model(job: Job, model: Any, steps: int, *, compiles: bool = True) -> compiling.CompiledLayers | None:
    """Install the kernels and compile the layers that the profile sets, for a run of `steps` steps. Returns the layers
    that will be compiled; none where the strategy does not allow it (`compiles`)."""
    settings, kind = job.profile.training, job.device.kind
    if not settings.optimizations:
        return None
    if liger.is_enabled(settings.liger, kind) and _try_liger(job, model):
        liger.install(model)
    if compiles and compiling.is_enabled(settings.compile, kind, steps):
        return compiling.install(
            model, kind, lambda message, hint, *, code: job.reporter.warn(code=code, message=message, hint=hint)
        )
    return None


def _try_liger(job: Job, model: Any) -> bool:
    """Whether Liger's kernels compute correctly here and, unless the profile demands them, faster."""
    from engine.training import fast_paths

    demanded, device = job.profile.training.liger is True, job.device
    return fast_paths.use(
        job, lambda trials: liger.try_kernels(trials, model, device.name, device.autocast, demanded=demanded)
    )


def count_workers(setting: int | str, device_kind: str, world: int) -> int:
    """Loader processes per rank for a value of `training.workers`. On a CPU the model needs the cores itself."""
    if isinstance(setting, int):
        return setting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if device_kind == "cpu" else max(1, min(MAX_WORKERS, cores // world - 1))


def make_loader(settings: TrainingOptions, device_kind: str, world: int, method: Method, batches: GlobalBatches) -> Any:
    """A DataLoader of micro-batches. Their order and content come from the sampler, in the rank itself, whatever the
    number of workers."""
    import torch
    from torch.utils.data import DataLoader

    count = count_workers(settings.workers, device_kind, world)
    prefetch: dict[str, Any] = {"num_workers": count, "persistent_workers": True, "prefetch_factor": 4} if count else {}
    # A separate generator: the loader must not draw from the one that dropout uses.
    return DataLoader(
        method.rows,
        batch_sampler=batches,
        collate_fn=method.collate,
        generator=torch.Generator(),
        pin_memory=device_kind == "cuda",
        **prefetch,
    )
