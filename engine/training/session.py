"""A training session from prepared data to its last checkpoint."""

from __future__ import annotations

import importlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.protocol.home import RunDirectory
from engine.protocol.journal import Start, Warn
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.profile import Profile
from engine.training import base, checkpoints, devices, optimizers, ranks, report, steering
from engine.training.job import Job
from engine.training.steering import Inbox
from engine.training.voice import Voice


def train(
    run: RunDirectory,
    attempt: int,
    profile: Profile,
    directory: Path,
    from_step: int | None,
    voice: Voice,
    inbox: Inbox,
) -> tuple[str, int]:
    """Train to the end, or until told to stop; returns `completed` or `stopped`, and the step. Raises ProblemError and
    whatever the libraries raise. `directory` is what a relative `checkpoint.output` is meant from."""
    started = time.time()
    resumed = _checkpoint_to_resume(run, from_step)
    live = steering.replay(resumed / checkpoints.TRAINER / "steering.json", profile) if resumed else profile
    output = Path(directory, live.checkpoint.output).expanduser() if live.checkpoint.output else None
    if output:
        checkpoints.check_output(output)
    job = _set_up(run, attempt, profile, live, voice, inbox)
    model = _model(job, resumed)
    trainer = _trainer(job, model)
    step = int(resumed.name.removeprefix("step-")) if resumed else 0
    _say_start(job, trainer, step, resumed)
    job.saved_step = step if resumed else -1
    if step < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(resumed / checkpoints.TRAINER) if resumed else None)
        step = trainer.state.global_step
    if job.ranks.first:
        _finish(job, model, trainer, step, output, time.time() - started)
    job.ranks.broadcast(None)  # nobody leaves before the last checkpoint is safe
    return trainer.outcome, step


def _checkpoint_to_resume(run: RunDirectory, from_step: int | None) -> Path | None:
    """The newest complete checkpoint, or that of `from_step`; None for a run that has none."""
    steps = run.checkpoint_steps()
    if from_step is not None and from_step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise ProblemError(Problem(title=f"There is no checkpoint of step {from_step}", hint=f"kept are: {kept}"))
    return run.checkpoint(steps[-1] if from_step is None else from_step) if steps else None


def _set_up(run: RunDirectory, attempt: int, submitted: Profile, live: Profile, voice: Voice, inbox: Inbox) -> Job:
    """Device, ranks, threads, tokenizer: all that is needed before the model."""
    import torch
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
    _, local, world = ranks.place()
    kind = devices.available()
    optimizers.check(live.training.optimizer, kind)
    devices.set_threads(live.training.threads, world)
    device = devices.choose(kind, local, live.model.dtype)
    group = ranks.join(kind)
    # A close race between two dtypes must not end differently on two ranks.
    device = replace(device, compute=group.broadcast(device.compute))
    inbox.pids = group.gather(inbox.pids[0])
    prepared = json.loads(run.prepared.read_text())
    if group.first:
        checkpoints.clean(run)
    torch.manual_seed(live.training.seed)
    return Job(
        run=run,
        attempt=attempt,
        submitted=submitted,
        profile=live,
        prepared=prepared,
        ranks=group,
        device=device,
        voice=voice,
        inbox=inbox,
        tokenizer=base.tokenizer(prepared["base"], live.model.trust_remote_code, prepared.get("template")),
        checkpoints=checkpoints.known(run),
    )


def _model(job: Job, resumed: Path | None) -> Any:
    """The model to train, with a checkpoint's weights when resuming."""
    import torch

    from engine.training import dropout
    from engine.training.adapters import fused_lora

    profile, voice = job.profile, job.voice
    full = profile.adapter.kind == "none"
    folder = str(resumed) if resumed and full else job.prepared["base"]
    voice.phase("loading", Path(job.prepared["base"]).name)
    model = base.load(
        folder,
        profile.model,
        job.device,
        lambda done, total: voice.phase("loading", f"tensor {done} of {total}", done, total),
    )
    # Not the checkpoint's own folder: what is saved later must name the base.
    model.name_or_path = job.prepared["base"]
    torch.manual_seed(profile.training.seed)
    model = importlib.import_module(f"engine.training.adapters.{profile.adapter.kind}").attach(model, profile.adapter)
    if full and profile.model.dtype == "float16":
        model.float()
    job.masters = full and model.dtype != getattr(torch, profile.model.dtype)
    if not full and job.device.kind == "cpu":
        dropout.install(model)
        fused_lora.install(model)
    if resumed:
        _restore(job, model, resumed)
    if profile.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if not full:
            model.enable_input_require_grads()
    return model


def _restore(job: Job, model: Any, folder: Path) -> None:
    """A checkpoint's trained weights into `model`, bit for bit."""
    import torch
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    elif job.masters:
        masters = torch.load(folder / checkpoints.TRAINER / "masters.pt", map_location="cpu")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(masters[name])


def _trainer(job: Job, model: Any) -> Any:
    """The method's trainer, everything about logging, evaluating and saving switched off in the library."""
    import torch
    from datasets import load_from_disk
    from torch.utils.data import DataLoader
    from transformers import TrainingArguments

    from engine.training.held_out import HeldOut
    from engine.training.rows import Windows, collate_flat, collate_padded, token_counts
    from engine.training.segments import Segments, possible

    settings = job.profile.training
    segments = Segments()
    flat = possible(model, job.profile.model.attention)
    if flat:
        segments.install(model)
    elif job.profile.data.packing:
        raise ProblemError(
            Problem(
                title="data.packing does not work with this model",
                cause="its attention cannot be kept apart between packed rows",
                hint="set data.packing to false, or model.attention to auto",
            )
        )
    collate = collate_flat if flat else collate_padded
    rows = load_from_disk(job.prepared["train"])
    windows = Windows(
        token_counts(rows), settings.micro_batch, settings.accumulation, job.ranks.rank, job.ranks.world, settings.seed
    )
    # A generator of its own: the loader must not draw from the one that dropout uses.
    loader = DataLoader(rows, batch_sampler=windows, collate_fn=collate, generator=torch.Generator())
    held_out = load_from_disk(job.prepared["validation"]) if job.prepared.get("validation") else None
    max_steps = settings.max_steps or math.ceil(settings.epochs * windows.per_epoch)
    arguments = TrainingArguments(
        output_dir=str(job.run.path),
        max_steps=max_steps,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=optimizers.SCHEDULERS[settings.scheduler],
        warmup_steps=settings.warmup,
        optim=optimizers.OPTIMIZERS[settings.optimizer],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=job.device.compute == torch.bfloat16,
        fp16=job.device.compute == torch.float16,
        use_cpu=job.device.kind == "cpu",
        ddp_find_unused_parameters=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
    )
    method = importlib.import_module(f"engine.training.methods.{job.profile.method.kind}")
    trainer = method.build(
        job=job,
        windows=windows,
        segments=segments,
        loader=loader,
        evaluate=HeldOut(job, held_out, collate) if held_out is not None and len(held_out) else None,
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=job.tokenizer,
    )
    torch.manual_seed(settings.seed + 7919 * job.ranks.rank)  # ranks must not share their dropout
    if job.profile.logging.tensorboard:
        job.voice.open_board()
    return trainer


def _say_start(job: Job, trainer: Any, step: int, resumed: Path | None) -> None:
    """The facts of this attempt, and what the user should know about the machine."""
    model, windows = trainer.model, trainer.windows
    compute = str(job.device.compute).removeprefix("torch.")
    job.voice.tell(
        Start(
            attempt=job.attempt,
            step=step,
            max_steps=trainer.args.max_steps,
            epochs=trainer.args.max_steps / windows.per_epoch,
            steps_per_epoch=windows.per_epoch,
            processes=job.ranks.world,
            global_batch=windows.global_batch,
            parameters=_count(model.parameters()),
            trainable_parameters=_count(p for p in model.parameters() if p.requires_grad),
            rows=len(windows.lengths),
            trained_tokens=job.prepared["trained_tokens"],
            resumed=f"from step {step}" if resumed else "",
            facts={
                "device": job.device.label,
                "dtype": job.profile.model.dtype,
                "quantization": job.profile.model.quantization,
                "compute_dtype": compute,
                **report.versions(),
            },
        )
    )
    if job.device.kind == "cpu" and compute != job.profile.model.dtype:
        job.voice.tell(
            Warn(
                attempt=job.attempt,
                message=f"This CPU computes {job.profile.model.dtype} more slowly than float32, so float32 is used; the "
                f"weights keep their {job.profile.model.dtype} values",
                hint="nothing to do; on a CPU with AMX or AVX512-BF16, or on a GPU, bfloat16 is computed",
            )
        )


def _count(parameters: Any) -> int:
    """Weights, those packed two to a byte counted as what they stand for."""
    return sum(
        math.prod(state.shape) if (state := getattr(p, "quant_state", None)) is not None else p.numel()
        for p in parameters
    )


def _finish(job: Job, model: Any, trainer: Any, step: int, output: Path | None, seconds: float) -> None:
    """Read the last checkpoint back, publish it, report."""
    last = job.run.checkpoint(step)
    if trainer.outcome == "completed":
        checkpoints.read_back(last, model, job.profile.model.dtype)
        if output:
            job.voice.phase("saving", str(output))
            checkpoints.publish(last, output)
    job.voice.close_board()
    report.write(job, trainer.outcome, step, trainer.results, seconds)
