"""Writes checkpoints with everything that an exact resume needs, and resumes from them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.config.profile import Profile
from engine.protocol import attempt_fence
from engine.protocol.codes import Pause
from engine.protocol.journal import Checkpoint
from engine.storage.atomic import write_folder
from engine.training import background_writer, checkpoints, early_stopping, ema, live_settings, resume
from engine.training.background_writer import BackgroundWriter, CheckpointFiles
from engine.training.parallel import sharded_state

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop


@dataclass(frozen=True)
class GatheredState:
    """The state of all ranks, gathered for a checkpoint."""

    snapshots: list[Any]
    optimizer: dict[str, Any]
    """The optimiser's state; complete on rank 0."""
    fingerprint: dict[str, Any]
    weights: dict[str, Any] | None = None
    """Where each rank has its share of the model: the weights to publish, on rank 0."""
    masters: dict[str, Any] | None = None
    """Where rank 0's model does not have them: the trained weights in float32, on rank 0."""
    shards: Path | None = None
    """Where the ranks have written their shares of everything else."""


class Checkpointer:
    """Every rank calls `save`, `gather` and `resume` at the same step; rank 0 writes."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._before_step: dict[str, Any] | None = None
        """`snapshot` at the beginning of the current step; None between two steps."""
        self._writer = BackgroundWriter()

    # ── a rank's state besides weights and optimiser ──────────────────────────────────────────────────────────────

    def snapshot(self) -> dict[str, Any]:
        """Random generators, sums not yet reported, recent losses, and the method's state."""
        return {
            "random": resume.get_random_state(),
            "metrics": self._loop.metrics.state_dict(),
            "recent": list(self._loop.guard.recent_losses),
            "routers": self._loop.routers.state_dict(),
            **self._loop.method.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Restore a snapshot."""
        resume.set_random_state(snapshot["random"])
        self._loop.metrics.load_state_dict(snapshot["metrics"])
        self._loop.guard.recent_losses.clear()
        self._loop.guard.recent_losses.extend(snapshot["recent"])
        self._loop.routers.load_state_dict(snapshot.get("routers", {}))
        self._loop.method.load_state_dict(snapshot)

    def mark_step_begin(self) -> None:
        """Remember the state before any random number is drawn for the next step. A checkpoint written before
        `mark_step_end` holds this state, as its weights and optimiser are of this moment too."""
        self._before_step = self.snapshot()

    def mark_step_end(self) -> None:
        self._before_step = None

    # ── resuming ──────────────────────────────────────────────────────────────────────────────────────────────────

    def resume(self) -> str:
        """Load optimiser, schedule and all other state from the checkpoint that this attempt resumes; the model has its
        weights already.

        Returns how exact the resume is (`resume.EXACT`, or what differs); empty for a new run.
        """
        loop, folder = self._loop, self._loop.job.resumed_from
        if folder is None:
            return ""
        inner = folder / checkpoints.RESUME_FOLDER
        loop.strategy.load(inner)
        # All else in the file is of its time, and for the groups of its strategy: the profile has the current rate.
        loop.schedule.last_epoch = torch.load(inner / "scheduler.pt", weights_only=True)["last_epoch"]
        loop.apply_settings(loop.profile)
        if loop.accelerator.scaler is not None and (inner / "scaler.pt").exists():
            loop.accelerator.scaler.load_state_dict(torch.load(inner / "scaler.pt", weights_only=True))
        if loop.averages is not None:
            stored = loop.strategy.read_named(inner, sharded_state.AVERAGES, loop.averages.values)
            loop.averages.load(inner, stored)
        if loop.evaluator.patience is not None:
            loop.evaluator.patience.load(inner)
        return resume.restore(loop, inner)

    # ── saving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, *, background: bool = False) -> Pause | None:
        """Write a checkpoint of this step, unless there is one, when the one before is written; returns, on every rank,
        why it could not be written, or None.

        With `background`, a large one is only copied here, and written while training goes on."""
        loop = self._loop
        pause: Pause | None = loop.ranks.broadcast(self.settle())
        if pause or loop.step == loop.job.saved_step:
            return pause
        with loop.reporter.in_phase("saving"):
            folder = loop.job.run.checkpoint(loop.step)
            pause = self.write_on_first(folder, lambda gathered: self._write(gathered, background))
        if pause is None:
            loop.job.saved_step = loop.step
        return pause

    def write_on_first(self, folder: Path, write: Callable[[GatheredState], Pause | None]) -> Pause | None:
        """Gather the state of all ranks for a checkpoint in `folder`, and let rank 0 write it. Called on every rank;
        returns, on every rank, why it could not be written, or None."""
        loop = self._loop
        attempt_fence.check()  # the shares of another attempt must not get into this one's folder either
        shards = folder.with_name(f".{folder.name.lstrip('.')}.shards-{loop.job.attempt}")
        try:
            gathered = self._gather(shards)
            written = write(gathered) if loop.ranks.first else None
        except OSError as error:  # of shards, on every rank; `write` has its own
            written = describe_failed_write(error)
        finally:
            if loop.ranks.first:
                shutil.rmtree(shards, ignore_errors=True)
        pause: Pause | None = loop.ranks.broadcast(written)
        return pause

    def _gather(self, shards: Path) -> GatheredState:
        loop = self._loop
        # On the host: a rank must not unpack what is another's device's.
        snapshots = loop.ranks.gather(background_writer.copy_to_host(self._before_step or self.snapshot()))
        loop.strategy.settle()
        state = GatheredState(snapshots, loop.strategy.save(), resume.compute_fingerprint(loop, snapshots))
        written = loop.strategy.write_shards(shards, loop.averages.values if loop.averages else {})
        weights, masters = self.gather_weights(), loop.strategy.masters()
        return replace(state, weights=weights, masters=masters, shards=shards if written else None)

    def gather_weights(self) -> dict[str, Any] | None:
        """The weights to publish, on rank 0, where each rank has a share of them; None where it has all. Called on
        every rank."""
        loop = self._loop
        if not loop.strategy.sharded:
            return None
        full, dtype = loop.profile.adapter.kind == "none", getattr(torch, loop.profile.model.dtype)
        trained = None if full else [name for name, weight in loop.model.named_parameters() if weight.requires_grad]
        with loop.averaged_weights():
            return loop.strategy.collect(trained, dtype if full else None)

    def settle(self) -> Pause | None:
        """Wait for the checkpoint that is being written; one that failed before is tried once more. On rank 0; returns
        why it could not be written, or None."""
        step = self._writer.step
        if step is None:
            return None
        self._writer.restart()
        with self._loop.reporter.in_phase("saving", f"step {step}"):
            error = self._writer.wait()
        return self._settled(step, error)

    def poll(self) -> Pause | None:
        """Record the checkpoint that has been written since the last boundary; returns why it could not be. On
        rank 0."""
        step = self._writer.step
        return None if step is None or self._writer.busy else self._settled(step, self._writer.wait())

    def retry(self) -> None:
        """Try a write that failed once more, in the background."""
        self._writer.restart()

    def close(self) -> None:
        """Let the write that is under way end, however the loop ends."""
        step = self._writer.step
        if step is not None and self._writer.wait() is None:
            self._record(step)

    def _settled(self, step: int, error: OSError | None) -> Pause | None:
        if error is None:
            self._record(step)
            return None
        return describe_failed_write(error)

    def _write(self, gathered: GatheredState, background: bool) -> Pause | None:
        """Write the checkpoint, on rank 0, or begin to; returns why it could not be written, or None."""
        loop, job = self._loop, self._loop.job
        step, files = loop.step, self.collect(gathered)
        facts = {"step": step, "attempt": job.attempt}

        def write() -> None:
            write_folder(job.run.checkpoint(step), lambda place: self.write_files(place, files), facts)

        # Shares are on the disk already.
        if background and not files.shards and background_writer.is_worthwhile(self._count_bytes(files)):
            files = self._copy(files)
            self._writer.start(step, write)
            return None
        try:
            write()
        except OSError as error:
            return describe_failed_write(error)
        self._record(step)
        return None

    def _record(self, step: int) -> None:
        """Journal a checkpoint that is on the disk, and remove those that are too many."""
        loop, job = self._loop, self._loop.job
        job.written.add(step)
        results = loop.evaluator.results.get(step, {})
        job.checkpoints[step] = {name: value for name, value in results.items() if value is not None}
        best = checkpoints.find_best(job.checkpoints, loop.profile.checkpoint.best_by)
        protected = {step} | ({best} if best is not None else set())
        removed = checkpoints.prune(job.run, loop.profile.checkpoint.keep, protected, job.written)
        for each in removed:
            job.checkpoints.pop(each, None)
        loop.reporter.write(
            Checkpoint(
                attempt=job.attempt,
                step=step,
                path=str(job.run.checkpoint(step)),
                metrics=job.checkpoints[step],
                best=step == best,
                removed=removed,
            )
        )
        job.plots.draw(step)

    def collect(self, gathered: GatheredState) -> CheckpointFiles:
        """What the checkpoint of this moment consists of; tensors are those that training goes on with."""
        loop, job = self._loop, self._loop.job
        objects = {
            "optimizer.pt": gathered.optimizer,
            "scheduler.pt": loop.schedule.state_dict(),
            resume.RANKS: gathered.snapshots,
        }
        if loop.accelerator.scaler is not None:
            objects["scaler.pt"] = loop.accelerator.scaler.state_dict()
        if gathered.masters is not None:
            objects[checkpoints.MASTERS] = gathered.masters
        elif job.masters and not gathered.shards:
            objects[checkpoints.MASTERS] = {n: p.data for n, p in loop.model.named_parameters() if p.requires_grad}
        if loop.averages is not None and not gathered.shards:
            objects[ema.FILE] = loop.averages.values
        settings = live_settings.describe_settings(job.submitted, loop.profile, job.skipped, job.plan)
        texts = {
            "lock.json": job.lock_text(loop.profile),
            f"{checkpoints.RESUME_FOLDER}/{live_settings.FILE}": settings,
            f"{checkpoints.RESUME_FOLDER}/{resume.FILE}": json.dumps(gathered.fingerprint),
        }
        if loop.evaluator.patience is not None:
            texts[f"{checkpoints.RESUME_FOLDER}/{early_stopping.FILE}"] = loop.evaluator.patience.to_text()
        return CheckpointFiles(gathered.weights, objects, texts, gathered.shards)

    def _count_bytes(self, files: CheckpointFiles) -> int:
        """The size of a copy of these files; 0 where only an adapter is trained, which is soon written."""
        model = self._loop.model
        if hasattr(model, "peft_config"):
            return 0
        if files.weights is not None:
            return background_writer.count_bytes([files.weights, files.objects])
        stored = (
            sum(weight.numel() for weight in model.state_dict().values())
            * getattr(torch, self._loop.profile.model.dtype).itemsize
        )
        return stored + background_writer.count_bytes(files.objects)

    def _copy(self, files: CheckpointFiles) -> CheckpointFiles:
        loop = self._loop
        if files.weights is not None:  # gathered from all ranks, as copies on the host
            return replace(files, objects=background_writer.copy_to_host(files.objects))
        with loop.averaged_weights():
            weights = checkpoints.collect_weights(loop.model, loop.profile.model.dtype, copy=True)
        return CheckpointFiles(weights, background_writer.copy_to_host(files.objects), files.texts)

    def write_files(self, folder: Path, files: CheckpointFiles) -> None:
        """Write all files of a checkpoint into `folder`. Raises OSError."""
        loop = self._loop
        with loop.averaged_weights() if files.weights is None else nullcontext():
            checkpoints.save_weights(loop.model, loop.job.tokenizer, folder, loop.profile.model.dtype, files.weights)
        inner = folder / checkpoints.RESUME_FOLDER
        inner.mkdir()
        for name, content in files.objects.items():
            torch.save(content, inner / name)
        for name, text in files.texts.items():
            (folder / name).write_text(text)
        if files.shards:
            shutil.copytree(files.shards, inner / sharded_state.FOLDER, copy_function=_link)

    # ── earlier checkpoints ───────────────────────────────────────────────────────────────────────────────────────

    def newest_before(self, step: int) -> int | None:
        """The step of the newest checkpoint before `step`. Valid on rank 0, which alone keeps the list."""
        self.settle()
        return max((each for each in self._loop.job.checkpoints if each < step), default=None)

    def read_settings(self, step: int) -> Profile:
        """The run's settings at a checkpoint."""
        inner = self._loop.job.run.checkpoint(step) / checkpoints.RESUME_FOLDER
        settings, _ = live_settings.replay(inner / live_settings.FILE, self._loop.job.submitted)
        return settings


def describe_failed_write(error: OSError) -> Pause:
    return Pause(
        code="pause.disk_low", reason=f"disk low: the checkpoint cannot be written ({error.strerror or error})"
    )


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
