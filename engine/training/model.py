"""Builds the model that a run trains: the base, its adapter, and a checkpoint's weights when the run is resumed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from engine.models.devices import Device
from engine.training import checkpoints
from engine.training.job import Job
from engine.training.parallel.single import SingleProcess


def build(job: Job, strategy: SingleProcess) -> Any:
    """The model to train, with a checkpoint's weights when resuming; `strategy` places it."""
    import torch

    masters = _choose_masters(job)
    model = strategy.build(lambda device: _make(job, device, masters), job.device, masters)
    rounded = job.profile.adapter.kind == "none" and model.dtype != getattr(torch, job.profile.model.dtype)
    job.masters = rounded or job.profile.training.ema is not None
    _set_up(job, model, strategy)
    return model


def _choose_masters(job: Job) -> Any:
    """The dtype that all weights are trained in, or None for that of the base.

    The range of float16 is too small for weights, and bfloat16 is too coarse: of an update of a 500th of a weight
    nothing is left, and AdamW's second moment cannot fall.
    """
    import torch

    profile = job.profile
    rounded = profile.training.masters == "float32" or profile.model.dtype == "float16" or profile.model.from_scratch
    return torch.float32 if profile.adapter.kind == "none" and rounded else None


def _make(job: Job, device: Device, masters: Any) -> Any:
    """The model on `device`, before anything is installed in it."""
    import torch

    profile, reporter = job.profile, job.reporter
    full, resumed = profile.adapter.kind == "none", job.resumed_from
    base_folder = job.prepared["base"]
    torch.manual_seed(profile.training.seed)  # a scoring head may be initialised at random
    if profile.model.from_scratch and not resumed:
        model = _make_random(job, device)
    else:
        folder = str(resumed) if resumed and full else base_folder
        reporter.set_phase("loading", Path(folder).name)
        model = job.load_base(
            folder,
            profile.model,
            device,
            lambda done, total: reporter.set_phase("loading", f"tensor {done} of {total}", done, total),
            # Packed weights are divided as they are, unless the passes are computed on a CPU.
            unpack=profile.training.optimizations and job.device.kind == "cpu",
            scores=getattr(profile.method, "scores", False),
        )
    # Not the checkpoint's own folder: later checkpoints must name the base.
    model.name_or_path = "" if profile.model.from_scratch else base_folder
    torch.manual_seed(profile.training.seed)
    model = importlib.import_module(f"engine.training.adapters.{profile.adapter.kind}").attach(model, profile.adapter)
    if resumed:
        _restore(model, resumed, masters)
    return model


def _set_up(job: Job, model: Any, strategy: SingleProcess) -> None:
    """Install what computes a model's passes, on every rank."""
    from engine.training import dropout, fast_paths
    from engine.training.adapters import fused_lora

    profile, full = job.profile, job.profile.adapter.kind == "none"
    if not full and profile.training.optimizations:
        on_cpu = job.device.kind == "cpu"
        if on_cpu and profile.method.rows == "tokens":  # type: ignore[attr-defined]
            dropout.install(model)
        # A trial copies a layer, of which a sharded strategy has only parts.
        if on_cpu or (not strategy.sharded and fast_paths.use_fused_lora(job, model)):
            fused_lora.install(model)
    if profile.training.gradient_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:  # an older transformers
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not full:
            model.enable_input_require_grads()


def _make_random(job: Job, device: Device) -> Any:
    """A model with random weights on `device`, identical on every rank: each draws them on its CPU from
    training.seed."""
    from engine.models import scratch

    job.reporter.set_phase("loading", "random weights")
    model = scratch.build_model(
        job.profile.model,
        job.prepared["base"],
        job.tokenizer,
        job.prepared.get("tokenizer") is not None,
        job.prepared["lock"]["eos_token_ids"],
        job.profile.training.seed,
    )
    return model.to(device.name)


def _restore(model: Any, folder: Path, dtype: Any) -> None:
    """Load a checkpoint's trained weights into `model`, bit for bit. `dtype` is that of the trained weights, None for
    the base's."""
    import torch
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    masters = folder / checkpoints.RESUME_FOLDER / checkpoints.MASTERS
    if masters.exists():
        if dtype is not None:
            model.to(dtype)
        kept = torch.load(masters, map_location="cpu", weights_only=True, mmap=True)
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data.copy_(kept[name])
    elif isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
