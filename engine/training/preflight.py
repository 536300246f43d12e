"""The first minute: what would break after hours breaks now.

The longest rows go through a step, an evaluation, a save and a reload, and nothing of it stays: the step has a learning rate of 0 (every
optimiser here multiplies by it, weight decay included), its optimiser states are dropped, generators and sums are put back, the checkpoint is
removed. A resumed run has its states already and its checkpoint has just been read, so only the passes are rehearsed.
"""

from __future__ import annotations

import copy
import math
import shutil
from typing import TYPE_CHECKING, Any

from engine.storage.atomic import write_folder
from engine.training import checkpoints, memory

if TYPE_CHECKING:
    from engine.training.saving import Gathered
    from engine.training.trainer import Steered

FOLDER = ".step-rehearsal"
"""Beside the checkpoints, removed again; a killed worker's goes with the other half-written ones."""


def rehearse(trainer: Steered, *, fresh: bool) -> None:
    """Called before the first step, with everything in place, on every rank. Raises what a step, an evaluation or a save would have
    raised later, and Again when smaller micro-batches may help."""
    if not trainer.rehearsable:
        return
    trainer.voice.phase("rehearsing", "the longest batch")
    before = copy.deepcopy(trainer.snapshot())
    scaler = copy.deepcopy(trainer.accelerator.scaler.state_dict()) if trainer.accelerator.scaler else None
    optimizer = trainer.optimizer.state_dict() if fresh else None
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    try:
        _compute(trainer, update=fresh)
        if fresh:
            _evaluate(trainer)
            _save(trainer)
    finally:
        trainer.model.zero_grad()
        if optimizer is not None:
            trainer.optimizer.load_state_dict(optimizer)
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if scaler is not None:
            trainer.accelerator.scaler.load_state_dict(scaler)
        trainer.take_up(before)
    memory.release()


def _compute(trainer: Steered, *, update: bool) -> None:
    """The passes of the longest micro-batch there can be, and with `update` the optimiser's step, which makes its states."""
    import torch

    windows, rows = trainer.windows, trainer.train_dataset
    kept = (row for row in range(len(windows.lengths)) if row not in windows.skipped)
    longest = sorted(kept, key=lambda row: (-windows.lengths[row], row))[: windows.micro_batch]
    model = trainer.model_wrapped
    # With accumulation the second pass finds the first one's gradients in memory.
    for _ in range(min(windows.accumulation, 2)):
        batch = trainer.collate([rows[row] for row in longest])
        batch = {key: value for key, value in batch.items() if key not in ("rows", "tokens")}
        units = max(trainer.units(batch) * trainer.ranks.world, 1.0)
        trainer.training_step(model, batch, units)
        trainer.voice.link.report_progress()
    trainer._agree_on_memory(rehearsed=True)
    trainer._add_up_gradients(model)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    # A step of gradients that are not finite is held back when it comes: here it would spoil the weights even at a rate of 0.
    if update and math.isfinite(norm):
        for group in trainer.optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        trainer.optimizer.step()


def _evaluate(trainer: Steered) -> None:
    """The longest held-out rows and the longest prompts; at the start all of them come anyway."""
    evaluator: Any = trainer._evaluator
    if evaluator is not None and not trainer.profile.evaluation.at_start:
        trainer.voice.phase("rehearsing", "evaluation")
        evaluator.rehearse(trainer)


def _save(trainer: Steered) -> None:
    """A whole checkpoint, written and read back by rank 0. A full disk pauses the run here, before anything is at stake."""
    trainer.voice.phase("rehearsing", "a checkpoint")
    while trouble := trainer.ranks.broadcast(_written_and_read(trainer, trainer.gathered())):
        trainer._pause(trainer.state.global_step, trouble)
        if trainer._stopping:
            return


def _written_and_read(trainer: Steered, gathered: Gathered) -> str:
    """By rank 0; returns why there is no room."""
    import torch

    if not trainer.ranks.first:
        return ""
    folder = trainer.job.run.checkpoints / FOLDER
    try:
        write_folder(folder, lambda place: trainer._fill(place, gathered))
        checkpoints.read_back(folder, trainer.model, trainer.profile.model.dtype)
        torch.load(folder / checkpoints.TRAINER / "optimizer.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        return f"disk low: a checkpoint cannot be written ({error.strerror or error})"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
