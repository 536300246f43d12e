"""Assembles a training loop from a run's rows, model and settings."""

from __future__ import annotations

import math
from typing import Any

from engine.models.checks import VIRTUAL
from engine.models.segments import Segments, can_use_segments, prove
from engine.models.varlen import Varlen
from engine.prep.batching import token_counts
from engine.protocol.messages import Problem, ProblemError
from engine.training import fast_paths, performance
from engine.training import model as trained_model
from engine.training.job import Job
from engine.training.loop import TrainingLoop
from engine.training.memory import MemoryWatch
from engine.training.methods.base import MethodSetup
from engine.training.metrics import StepMetrics
from engine.training.online.batching import make_global_batches
from engine.training.parallel.choose import make_strategy


def make_loop(job: Job) -> TrainingLoop:
    """The model and its training loop, at the step of the checkpoint that the run resumes. Raises ProblemError for
    settings that do not work with this model."""
    import torch
    from datasets import load_from_disk
    from transformers import set_seed
    from transformers.trainer_utils import align_special_tokens

    settings = job.profile.training
    strategy = make_strategy(job.profile, make_accelerator(job), job.ranks)
    model = trained_model.build(job, strategy)
    set_seed(settings.seed)
    align_special_tokens(model, job.tokenizer)
    rows = load_from_disk(job.prepared["train"])
    held_out = load_from_disk(job.prepared["validation"]) if job.prepared.get("validation") else None
    segments = _make_segments(job, model, "seq_lengths" in rows.column_names)
    batches = make_global_batches(
        job.profile, token_counts(rows), job.ranks.rank, job.ranks.world, plan=job.plan, padded=segments is None
    )
    batches.skipped = job.skipped
    job.longest_row = max(batches.lengths, default=0)
    setup = MethodSetup(
        job=job,
        model=model,
        rows=rows,
        held_out=held_out if held_out is not None and len(held_out) else None,
        batches=batches,
        segments=segments,
        metrics=StepMetrics(),
        memory=MemoryWatch(recovers=not strategy.sharded),
        strategy=strategy,
    )
    strategy.segments = setup.segments
    max_steps = settings.max_steps or math.ceil(settings.epochs * batches.per_epoch)
    step = int(job.resumed_from.name.removeprefix("step-")) if job.resumed_from else 0
    compiled = performance.optimize_model(job, model, max_steps, compiles=not strategy.sharded)
    loop = TrainingLoop(setup, step, max_steps)
    if strategy.sharded:
        for head, each in loop.method.heads:
            head.learn_finish(each, torch.arange(3, 11, device=model.device)[None])
        strategy.settle()
    if compiled:
        fast_paths.try_compiled(loop, compiled)
    torch.manual_seed(settings.seed + 7919 * job.ranks.rank)  # ranks must not use the same dropout masks
    return loop


def make_accelerator(job: Job) -> Any:
    """An `accelerate.Accelerator` for this rank: compute dtype, loss scaler, device. accelerate's environment variables
    have no effect."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    # A loop that is built again in this process may compute in another dtype.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(job.device.compute, "no")
    return Accelerator(
        mixed_precision=precision,
        cpu=job.device.backend == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the method divides the loss itself
        dynamo_backend="no",
    )


def _make_segments(job: Job, model: Any, joined: bool) -> Segments | None:
    """Segments that keep attention within each row, or None where rows are padded. `joined`: each row holds several
    packed ones. Raises ProblemError when joined rows cannot be kept apart."""
    profile = job.profile
    # Virtual tokens precede every row, so such rows cannot be concatenated. Joined rows already are.
    needed = (profile.training.optimizations or joined) and profile.adapter.kind not in VIRTUAL
    wrong = "its layers attend in another way than causally"
    if needed and can_use_segments(model):
        segments = Segments(Varlen() if fast_paths.use_varlen(job, model) else None)
        segments.install(model)
        wrong = "" if job.simulated else prove(model, segments)
        if wrong and segments.varlen is not None:
            segments.varlen = None
            wrong = prove(model, segments)
        if not wrong:
            return segments
        segments.uninstall()
        if not joined:
            job.reporter.warn(
                code="data.rows.padded",
                message=f"rows are padded, since this model cannot compute them joined: {wrong}",
                hint="nothing to do; rows of about the same length waste less",
            )
    if joined:
        remedy = "method.sequences to rows" if profile.method.kind == "pretrain" else "data.packing to false"
        raise ProblemError(
            Problem(
                code="data.rows.not_joinable",
                title="Rows cannot be joined for this model",
                cause=f"its attention cannot be restricted to one row of a sequence that holds several: {wrong}",
                hint=f"set {remedy}",
            )
        )
    return None
