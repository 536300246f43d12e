"""A run's trainer, made of its rows, batches and settings."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

from engine.models.checks import VIRTUAL
from engine.models.segments import Segments, can_use_segments
from engine.prep.batching import Windows, token_counts
from engine.protocol.messages import Problem, ProblemError
from engine.training import optimizers, performance
from engine.training.job import Job
from engine.training.online.windows import windows_of


@dataclass(frozen=True)
class Parts:
    """What a method builds its trainer of."""

    job: Job
    model: Any
    rows: Any
    """The training set, in the columns of the method's `Options.rows`."""
    held_out: Any
    """The validation set in the same columns; None without one."""
    windows: Windows
    segments: Segments | None
    """How attention is cut between rows that lie end to end; None where this model's cannot be."""
    arguments: dict[str, Any]
    """For `transformers.TrainingArguments` or a trl config: logging, evaluating and saving are switched off in the library."""


def trainer(job: Job, model: Any) -> Any:
    """The trainer of the run's method. Raises ProblemError for settings that this model cannot take."""
    import torch

    method = importlib.import_module(f"engine.training.methods.{job.profile.method.kind}")
    built = method.build(_parts(job, model))
    torch.manual_seed(job.profile.training.seed + 7919 * job.ranks.rank)  # ranks must not share their dropout
    performance.after_model(job, built.model, built.args.max_steps)
    return built


def _parts(job: Job, model: Any) -> Parts:
    from datasets import load_from_disk

    settings = job.profile.training
    rows = load_from_disk(job.prepared["train"])
    held_out = load_from_disk(job.prepared["validation"]) if job.prepared.get("validation") else None
    windows = windows_of(job.profile, token_counts(rows), job.ranks.rank, job.ranks.world)
    windows.skipped = job.skipped
    return Parts(
        job=job,
        model=model,
        rows=rows,
        held_out=held_out if held_out is not None and len(held_out) else None,
        windows=windows,
        segments=_segments(job, model, "seq_lengths" in rows.column_names),
        arguments=_arguments(job, settings.max_steps or math.ceil(settings.epochs * windows.per_epoch)),
    )


def _segments(job: Job, model: Any, joined: bool) -> Segments | None:
    """`joined`: rows hold several parts each."""
    profile = job.profile
    # Virtual tokens stand before every row: rows that have them do not lie end to end. Joined rows always do.
    wanted = (profile.training.optimizations or joined) and profile.adapter.kind not in VIRTUAL
    if wanted and can_use_segments(model, profile.model.attention):
        segments = Segments()
        segments.install(model)
        return segments
    if joined:
        mend = "method.sequences to rows" if profile.method.kind == "pretrain" else "data.packing to false"
        raise ProblemError(
            Problem(
                title="Rows cannot be joined for this model",
                cause="its attention cannot be kept apart between rows that share a sequence",
                hint=f"set {mend}, or model.attention to auto",
            )
        )
    return None


def _arguments(job: Job, max_steps: int) -> dict[str, Any]:
    import torch

    settings = job.profile.training
    return {
        "output_dir": str(job.run.path),
        "max_steps": max_steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": optimizers.SCHEDULERS[settings.scheduler],
        "warmup_steps": settings.warmup,
        "optim": optimizers.OPTIMIZERS.get(settings.optimizer, "adamw_torch"),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "bf16": job.device.compute == torch.bfloat16,
        "fp16": job.device.compute == torch.float16,
        "use_cpu": job.device.kind == "cpu",
        "ddp_find_unused_parameters": False,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "average_tokens_across_devices": False,
    }
