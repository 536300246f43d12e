"""Writes checkpoints with everything that an exact resume needs, and resumes from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config.profile import Profile
from engine.protocol.codes import Pause
from engine.protocol.journal import Checkpoint
from engine.storage.atomic import write_folder
from engine.training import checkpoints, live_settings, resume

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop


@dataclass(frozen=True)
class GatheredState:
    """The state of all ranks, gathered for a checkpoint."""

    snapshots: list[Any]
    optimizer: dict[str, Any]
    """The optimiser's state; complete on rank 0."""
    fingerprint: dict[str, Any]


class Checkpointer:
    """Every rank calls `save`, `gather` and `resume` at the same step; rank 0 writes."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._before_step: dict[str, Any] | None = None
        """`snapshot` at the beginning of the current step; None between two steps."""

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
        import torch

        inner = folder / checkpoints.RESUME_FOLDER
        loop.strategy.load(inner / "optimizer.pt")
        loop.schedule.load_state_dict(torch.load(inner / "scheduler.pt", weights_only=True))
        # The file holds the learning rate of its time; the profile, with later changes, has the current one.
        loop.apply_settings(loop.profile)
        if loop.accelerator.scaler is not None and (inner / "scaler.pt").exists():
            loop.accelerator.scaler.load_state_dict(torch.load(inner / "scaler.pt", weights_only=True))
        for part in (loop.averages, loop.evaluator.patience):
            if part is not None:
                part.load(inner)
        return resume.restore(loop, inner)

    # ── saving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> Pause | None:
        """Write a checkpoint of this step, unless there is one; returns, on every rank, why it could not be written, or
        None."""
        loop = self._loop
        if loop.step == loop.job.saved_step:
            return None
        with loop.reporter.in_phase("saving"):
            pause: Pause | None = loop.ranks.broadcast(self._write(self.gather()))
        if pause is None:
            loop.job.saved_step = loop.step
            if loop.ranks.first:
                loop.job.plots.draw(loop.step)
        return pause

    def gather(self) -> GatheredState:
        """Gather the state of all ranks. Called on every rank."""
        loop = self._loop
        snapshots = loop.ranks.gather(self._before_step or self.snapshot())
        return GatheredState(snapshots, loop.strategy.save(), resume.compute_fingerprint(loop, snapshots))

    def _write(self, gathered: GatheredState) -> Pause | None:
        """Write the checkpoint, on rank 0; returns why it could not be written, or None."""
        loop, job = self._loop, self._loop.job
        if not loop.ranks.first:
            return None
        folder = job.run.checkpoint(loop.step)
        try:
            facts = {"step": loop.step, "attempt": job.attempt}
            write_folder(folder, lambda place: self.write_files(place, gathered), facts)
        except OSError as error:
            return Pause(
                code="pause.disk_low", reason=f"disk low: the checkpoint cannot be written ({error.strerror or error})"
            )
        job.written.add(loop.step)
        results = loop.evaluator.results.get(loop.step, {})
        job.checkpoints[loop.step] = {name: value for name, value in results.items() if value is not None}
        best = checkpoints.find_best(job.checkpoints, loop.profile.checkpoint.best_by)
        protected = {loop.step} | ({best} if best is not None else set())
        removed = checkpoints.prune(job.run, loop.profile.checkpoint.keep, protected, job.written)
        for step in removed:
            job.checkpoints.pop(step, None)
        loop.reporter.write(
            Checkpoint(
                attempt=job.attempt,
                step=loop.step,
                path=str(folder),
                metrics=job.checkpoints[loop.step],
                best=loop.step == best,
                removed=removed,
            )
        )
        return None

    def write_files(self, folder: Path, gathered: GatheredState) -> None:
        """Write all files of a checkpoint into `folder`. Raises OSError."""
        import torch

        loop, job = self._loop, self._loop.job
        with loop.averaged_weights():
            checkpoints.save_weights(loop.model, job.tokenizer, folder, loop.profile.model.dtype)
        (folder / "lock.json").write_text(job.lock_text(loop.profile))
        inner = folder / checkpoints.RESUME_FOLDER
        inner.mkdir()
        torch.save(gathered.optimizer, inner / "optimizer.pt")
        torch.save(loop.schedule.state_dict(), inner / "scheduler.pt")
        if loop.accelerator.scaler is not None:
            torch.save(loop.accelerator.scaler.state_dict(), inner / "scaler.pt")
        torch.save(gathered.snapshots, inner / resume.RANKS)
        live_settings.save_settings(inner / live_settings.FILE, job.submitted, loop.profile, job.skipped, job.plan)
        (inner / resume.FILE).write_text(json.dumps(gathered.fingerprint))
        if job.masters:
            trained = {name: p.data for name, p in loop.model.named_parameters() if p.requires_grad}
            torch.save(trained, inner / checkpoints.MASTERS)
        for part in (loop.averages, loop.evaluator.patience):
            if part is not None:
                part.save(inner)

    # ── earlier checkpoints ───────────────────────────────────────────────────────────────────────────────────────

    def newest_before(self, step: int) -> int | None:
        """The step of the newest checkpoint before `step`. Valid on rank 0, which alone keeps the list."""
        return max((each for each in self._loop.job.checkpoints if each < step), default=None)

    def read_settings(self, step: int) -> Profile:
        """The run's settings at a checkpoint."""
        inner = self._loop.job.run.checkpoint(step) / checkpoints.RESUME_FOLDER
        settings, _ = live_settings.replay(inner / live_settings.FILE, self._loop.job.submitted)
        return settings
