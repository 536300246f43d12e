"""Evaluating and saving at a step boundary, with all that an exact resume needs."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.protocol.codes import Pause
from engine.protocol.journal import Checkpoint, Evaluation, Sample, Warn
from engine.training import checkpoints, resuming, steering
from engine.training.early_stopping import Patience
from engine.training.ema import Averages
from engine.training.obeying import Obeying
from engine.training.overfitting import Overfitting


@dataclass(frozen=True)
class Gathered:
    """What a checkpoint holds of all ranks."""

    snapshots: list[Any]
    optimizer: dict[str, Any]
    """Its `state_dict()`; on rank 0 alone where ranks share it."""
    fingerprint: dict[str, Any]


class Saving(Obeying):
    """Mixin of `Steered`."""

    results: dict[int, dict[str, float]]
    """Evaluations by step."""
    averages: Averages | None = None
    patience: Patience | None = None
    _early = ""
    """Why the run ends before its last step."""
    _evaluator: Any
    _overfitting: Overfitting
    _opening: dict[str, Any] | None
    """`snapshot` as it was when the window in work began; None between two windows."""

    def snapshot(self) -> dict[str, Any]:
        """What this rank holds beside weights and optimiser: generators, and sums not yet reported."""
        raise NotImplementedError

    def take_up(self, snapshot: dict[str, Any]) -> None:
        """Go on with a snapshot."""
        raise NotImplementedError

    def _warn(self, step: int, message: str, hint: str, *, code: str) -> None:
        self.voice.tell(Warn(attempt=self.job.attempt, code=code, step=step, message=message, hint=hint))

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the model has the weights that the run evaluates and saves."""
        return self.averages.in_place() if self.averages else nullcontext()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        for part in (self.averages, self.patience):
            if part is not None and checkpoint is not None:
                part.load(Path(checkpoint))

    def _look(self, step: int) -> None:
        """Whether the evaluation of this step, if there was one, was one too many without a new best."""
        if self.patience and step in self.results:
            self._early = self.patience.look(step, self.results[step])

    def evaluate_now(self, step: int) -> None:
        """Held-out loss and the task's metrics after `step` steps; nothing without held-out rows, or when just done."""
        if self._evaluator is None or step in self.results:
            return
        self.voice.phase("evaluating")
        start = time.perf_counter()
        with self.averaged():
            values, samples = self._evaluator(self)
        self.results[step] = values
        seconds = time.perf_counter() - start
        self.voice.tell(Evaluation(attempt=self.job.attempt, step=step, values=values, seconds=seconds))
        for sample in samples:
            self.voice.tell(Sample(attempt=self.job.attempt, step=step, **sample))
        if "eval/loss" in values and (said := self._overfitting.evaluated(values["eval/loss"])):
            self._warn(
                step,
                said,
                "the model learns its rows by heart: stop and take the best checkpoint, add data, or set evaluation.early_stopping",
                code="training.overfitting",
            )
        self.voice.phase("training")

    def save_now(self, step: int) -> None:
        """A complete checkpoint of `step`, kept and listed; a full disk pauses until there is room."""
        if step == self.job.saved_step:
            return
        self.voice.phase("saving")
        while trouble := self.ranks.broadcast(self._write_checkpoint(step, self.gathered())):
            self._pause(step, trouble)
            if self._stopping:
                self._warn(
                    step,
                    f"stopped without a checkpoint of step {step}: {trouble.reason}",
                    "resume goes on from the one before",
                    code="training.no_checkpoint",
                )
                return
        self.job.saved_step = step
        if self.ranks.first:
            self.job.plots.draw(step)
        self.voice.phase("training")

    def gathered(self) -> Gathered:
        """On every rank alike."""
        # In the middle of a step weights and optimiser are still those of its beginning; so must the generators be.
        snapshots = self.ranks.gather(self._opening or self.snapshot())
        return Gathered(
            snapshots,
            self.shares.whole() if self.shares else self.optimizer.state_dict(),
            resuming.fingerprint(self, self.state.global_step, snapshots),
        )

    def _write_checkpoint(self, step: int, gathered: Gathered) -> Pause | None:
        """By rank 0; returns why it could not be written."""
        if not self.ranks.first:
            return None
        job, folder = self.job, self.job.run.checkpoint(step)
        try:
            checkpoints.write(folder, lambda place: self._fill(place, gathered))
        except OSError as error:
            reason = f"disk low: the checkpoint cannot be written ({error.strerror or error})"
            return Pause(code="pause.disk_low", reason=reason)
        job.checkpoints[step] = {k: v for k, v in self.results.get(step, {}).items() if v is not None}
        best = checkpoints.best(job.checkpoints, self.profile.checkpoint.best_by)
        removed = checkpoints.prune(
            job.run, self.profile.checkpoint.keep, {step} | ({best} if best is not None else set())
        )
        for gone in removed:
            job.checkpoints.pop(gone, None)
        self.voice.tell(
            Checkpoint(
                attempt=job.attempt,
                step=step,
                path=str(folder),
                metrics=job.checkpoints[step],
                best=step == best,
                removed=removed,
            )
        )
        return None

    def _fill(self, folder: Path, gathered: Gathered) -> None:
        import torch

        job = self.job
        with self.averaged():
            checkpoints.save_weights(self.model, job.tokenizer, folder, self.profile.model.dtype)
        (folder / "lock.json").write_text(job.lock_text(self.profile))
        inner = folder / checkpoints.TRAINER
        inner.mkdir()
        torch.save(gathered.optimizer, inner / "optimizer.pt")
        torch.save(self.lr_scheduler.state_dict(), inner / "scheduler.pt")
        if self.accelerator.scaler is not None:
            torch.save(self.accelerator.scaler.state_dict(), inner / "scaler.pt")
        torch.save(gathered.snapshots, inner / resuming.RANKS)
        self.state.save_to_json(str(inner / "trainer_state.json"))
        steering.store(inner / steering.FILE, job.submitted, self.profile, job.skipped)
        (inner / resuming.FILE).write_text(json.dumps(gathered.fingerprint))
        if job.masters:
            trained = {name: p.data for name, p in self.model.named_parameters() if p.requires_grad}
            torch.save(trained, inner / checkpoints.MASTERS)
        for part in (self.averages, self.patience):
            if part is not None:
                part.save(inner)
