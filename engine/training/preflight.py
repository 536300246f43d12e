"""The preflight: a failure that would occur after hours occurs in the first minute.

The longest rows go through a step, an evaluation, a save and a reload, without a trace: the step has a learning rate
of 0 (every optimiser here multiplies by it, weight decay included), its optimiser state is dropped, generators and sums
are restored, and the checkpoint is removed. A resumed run has its optimiser state already, and its checkpoint has just
been read, so only the forward and backward passes are tried. They are left out where they certainly fit (see
`engine.training.certain_fit`).
"""

from __future__ import annotations

import copy
import math
import shutil
from typing import TYPE_CHECKING

from engine.models import accelerator
from engine.protocol.codes import Pause
from engine.storage.atomic import write_folder
from engine.training import certain_fit, checkpoints, growth, memory_report, optimizer_factory
from engine.training.checkpointer import describe_failed_write

if TYPE_CHECKING:
    from engine.training.checkpointer import GatheredState
    from engine.training.loop import TrainingLoop
    from engine.training.methods.base import Batch

FOLDER = ".step-rehearsal"
"""Folder of the trial checkpoint, removed afterwards; one of a killed worker is removed with its other partial
checkpoints."""


def rehearse(loop: TrainingLoop, *, fresh: bool) -> None:
    """Run the preflight, on every rank, just before the first step. Raises what a step, an evaluation or a save would
    raise later, and RestartFrom when smaller micro-batches may help, or larger ones fit."""
    if not loop.method.rehearsable:
        return
    loop.reporter.set_phase("rehearsing", "the longest batch")
    before = copy.deepcopy(loop.checkpointer.snapshot())
    scaler = copy.deepcopy(loop.accelerator.scaler.state_dict()) if loop.accelerator.scaler else None
    optimizer = loop.optimizer.state_dict() if fresh else None
    rates = [group["lr"] for group in loop.optimizer.param_groups]
    try:
        batch = _make_longest(loop)
        fits = certain_fit.is_certain(loop, batch)
        if not fits:
            _step(loop, batch, update=fresh)
            growth.grow(loop)
        if fresh:
            _evaluate(loop)
            _save(loop)
    finally:
        loop.optimizer.zero_grad()
        if optimizer is not None:
            optimizer_factory.reset(loop.optimizer, optimizer)
        for group, rate in zip(loop.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if scaler is not None:
            loop.accelerator.scaler.load_state_dict(scaler)
        loop.checkpointer.restore(before)
    if not fits:
        memory_report.record_peak(loop.job, memory_report.REHEARSED)
    accelerator.release()


def _make_longest(loop: TrainingLoop) -> Batch:
    """The longest possible micro-batch."""
    return loop.method.longest_batch([loop.method.rows[row] for row in loop.batches.pick_longest()])


def _step(loop: TrainingLoop, batch: Batch, *, update: bool) -> None:
    """Run forward and backward passes of the longest micro-batch, and with `update` the optimiser's step, which creates
    its state."""
    import torch

    batches, method = loop.batches, loop.method
    loop.memory.reset()
    # With accumulation the second pass finds the first one's gradients in memory.
    for _ in range(min(batches.accumulation, 2)):
        with loop.memory.catch():
            loop.compute_gradients([batch], max(method.units(batch) * loop.ranks.world, 1.0))
        loop.reporter.link.report_progress()
    loop.guard.vote(0.0, rehearsed=True)
    loop.strategy.reduce()
    norm = float(loop.strategy.norm())
    # Gradients that are not finite would spoil the weights even at a rate of 0; a real step holds them back.
    if update and math.isfinite(norm):
        for group in loop.optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        loop.optimizer.step()


def _evaluate(loop: TrainingLoop) -> None:
    """Try the longest held-out rows and the longest prompts, unless an evaluation at the start measures all of them
    anyway."""
    if not loop.profile.evaluation.at_start:
        loop.reporter.set_phase("rehearsing", "evaluation")
        loop.guard.evaluate(rehearsed=True)


def _save(loop: TrainingLoop) -> None:
    """Write a complete checkpoint and read it back, on rank 0. A full disk pauses the run here, before any work can be
    lost."""
    loop.reporter.set_phase("rehearsing", "a checkpoint")
    folder = loop.job.run.checkpoints / FOLDER
    while pause := loop.checkpointer.write_on_first(folder, lambda gathered: _write_and_read(loop, gathered)):
        loop.control.pause(pause)
        if loop.control.stopping:
            return


def _write_and_read(loop: TrainingLoop, gathered: GatheredState) -> Pause | None:
    """Write and verify the trial checkpoint, on rank 0; returns why it cannot be written, or None."""
    import torch

    folder = loop.job.run.checkpoints / FOLDER
    try:
        files = loop.checkpointer.collect(gathered)
        write_folder(folder, lambda place: loop.checkpointer.write_files(place, files))
        checkpoints.read_back(folder, loop.model, loop.profile.model.dtype, gathered.weights)
        torch.load(
            folder / checkpoints.RESUME_FOLDER / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True
        )
    except OSError as error:
        return describe_failed_write(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None
