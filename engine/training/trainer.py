"""What every method's trainer does at a step boundary: say how the step went, obey, evaluate, save.

`Steered` goes in front of a transformers or trl trainer and replaces its logging, evaluating and saving with ours. The
library keeps the loop: batches, backward passes, clipping, optimiser, schedule, resume.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.protocol.journal import Checkpoint, Evaluation, Ledger, Metrics, Sample, Warn
from engine.protocol.messages import Problem
from engine.protocol.profile import Profile
from engine.training import checkpoints, steering
from engine.training.job import Job
from engine.training.rows import Windows

DISK_CHECK = 5.0
"""Seconds between looks at the free disk space."""
PAUSE_TURN = 1.0
"""Seconds between two agreements of ranks that are paused: far below any collective's time-out."""
_HUGE = 2**31


@dataclass
class Tally:
    """What this rank has computed since the last report. Seconds are those of steps alone."""

    loss: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    mark: float = field(default_factory=time.perf_counter)


if TYPE_CHECKING:
    from transformers import Trainer as Library
else:
    Library = object  # the trainer proper stands behind this mixin in the method's class


class Steered(Library):
    """Mixin before a `transformers.Trainer`. `job` says everything; `windows` is the batch sampler of training rows."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *, job: Job, windows: Windows, loader: Any, evaluate: Any, **arguments: Any) -> None:
        self.job, self.ranks, self.voice, self.profile = job, job.ranks, job.voice, job.profile
        self.windows, self._loader, self._evaluator = windows, loader, evaluate
        self.outcome = "completed"
        self.results: dict[int, dict[str, float]] = {}
        """Evaluations by step."""
        self._tally = Tally()
        self._boundary = 0
        self._disk_looked = 0.0
        self._trouble = ""
        self._stopping = False
        self._begun = False
        super().__init__(**arguments)
        for callback in list(self.callback_handler.callbacks)[1:]:
            self.remove_callback(callback)  # all but the flow: printing is ours

    # ── what the library asks ─────────────────────────────────────────────────────────────────────────────────────

    def get_train_dataloader(self) -> Any:
        return self._loader

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """The last step alone ends a run: it may move while the run is running, beyond any number of epochs."""
        _, *others = super().set_initial_training_values(args, dataloader)
        return (_HUGE, *others)

    def _run_epoch(self, **arguments: Any) -> None:
        if not self._begun:
            self._begin(self.state.global_step)
        if not self.control.should_training_stop:
            self.windows.epoch = arguments["epoch"]
            super()._run_epoch(**arguments)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """A window's micro-batches and its trained tokens, over all ranks; ours to count on the way."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._tally.rows += sum(batch.pop("rows") for batch in batches)
        self._tally.tokens += sum(batch.pop("tokens") for batch in batches)
        trained = self.ranks.sum([sum(len(batch["targets"]) for batch in batches)])[0]
        return batches, max(trained, 1.0)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _clip_grad_norm(self, model: Any) -> Any:
        return self._guard(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return grad_norm
        return self._guard(super()._get_grad_norm(model))

    def _guard(self, norm: Any) -> Any:
        """A gradient that is not finite must not reach the weights: drop it, and ask for a pause. All ranks see the same norm."""
        if self.accelerator.scaler is None and not math.isfinite(norm):
            for parameter in self.model.parameters():
                parameter.grad = None
            self._trouble = "gradient not finite"
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The session has put the weights in place; the rest of a resume is the library's."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._set_random_state(Path(checkpoint))

    # ── the boundary ──────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, step: int) -> None:
        """Before the first step of this attempt, with everything in place."""
        self._begun = True
        self._boundary = step
        if step == 0 and self.profile.evaluation.at_start:
            self.evaluate_now(step)
        self._obey(step)
        self._end_if_done(step)
        self.voice.phase("first step")
        self._tally = Tally()

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: int,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        step = self.state.global_step
        if step == self._boundary:
            return  # the library calls once more after an epoch
        self._boundary = self.job.inbox.step = step
        self._account(tr_loss)
        self.voice.link.alive(step=step)
        self._report(step, grad_norm, learning_rate)
        if self.voice.phase_name != "training":
            self.voice.phase("training")
        last = step >= self.state.max_steps
        if self._due(step, self.profile.evaluation.every_steps) or last:
            self.evaluate_now(step)
        if self._due(step, self.profile.checkpoint.every_steps) or last:
            self.save_now(step)
        self._obey(step)
        self._end_if_done(step)
        self._tally.mark = time.perf_counter()

    def _end_if_done(self, step: int) -> None:
        """Leave the loop when told to stop, or when this was the last step (which a command may have moved to here)."""
        done = step >= self.state.max_steps
        if done or self._stopping:
            self.outcome = "completed" if done else "stopped"
            self.save_now(step)
            self.control.should_training_stop = True

    def _account(self, tr_loss: Any) -> None:
        now = time.perf_counter()
        self._tally.seconds += now - self._tally.mark
        self._tally.steps += 1
        loss = tr_loss.item() / self.ranks.world
        tr_loss -= tr_loss
        self._tally.loss += loss

    def _due(self, step: int, every: int | None) -> bool:
        return step % (every or self.windows.per_epoch) == 0

    def _report(self, step: int, grad_norm: Any, learning_rate: float | None) -> None:
        """Metrics of the steps since the last report, once the whole has been added up over the ranks."""
        last = step >= self.state.max_steps
        if step % self.profile.logging.every_steps and not last and not self._trouble:
            return
        tally, self._tally = self._tally, Tally()
        loss, rows, tokens = self.ranks.sum([tally.loss / tally.steps, tally.rows, tally.tokens])
        values: dict[str, float | None] = {
            "train/loss": loss,
            "train/learning_rate": learning_rate,
            "train/grad_norm": float(grad_norm),
            "train/tokens_per_second": tokens / tally.seconds,
            "train/samples_per_second": rows / tally.seconds,
            "train/step_seconds": tally.seconds / tally.steps,
        }
        values |= self.job.device_peak()
        self.voice.tell(Metrics(attempt=self.job.attempt, step=step, epoch=self.state.epoch, values=values))
        if not math.isfinite(loss):
            self._trouble = "loss not finite"
        if self._trouble:
            self._warn(
                step,
                f"step {step}: {self._trouble}; this step's update was not applied",
                "look at the data of this step, lower training.learning_rate, then continue or stop",
            )

    def _warn(self, step: int, message: str, hint: str) -> None:
        self.voice.tell(Warn(attempt=self.job.attempt, step=step, message=message, hint=hint))

    # ── commands and trouble ──────────────────────────────────────────────────────────────────────────────────────

    def _obey(self, step: int) -> None:
        """Take what has come, on all ranks alike; return when the run may go on."""
        if reason := self._meet(step):
            self._pause(step, reason)

    def _meet(self, step: int) -> str:
        """One agreement: commands are carried out, and a reason to pause is returned."""
        trouble = self._trouble or self._disk_trouble()
        self._trouble = ""
        waiting = len(self.job.inbox) + bool(trouble) if self.ranks.first else 0
        if not self.ranks.sum([waiting])[0]:
            return ""
        reason, names = self._take_orders(step, trouble)
        for name in names:
            reason = {"pause": "asked", "continue": "", "stop": ""}.get(name, reason)
        return str(reason)

    def _carry_out(self, name: str, arguments: dict[str, Any], step: int) -> str:
        """One command; returns why it is refused, or nothing."""
        match name:
            case "stop":
                self._stopping = True
            case "save":
                self.save_now(step)
            case "evaluate":
                self.evaluate_now(step)
            case "set":
                return self._set(arguments.get("changes", arguments), step)
            case "pause" | "continue":
                pass
            case _:
                return f"a training worker does not know the command {name!r}"
        return ""

    def _set(self, changes: dict[str, Any], step: int) -> str:
        live = self.profile
        try:
            for key, value in changes.items():
                live = steering.changed(live, key, value)
            if live.training.max_steps is not None and live.training.max_steps < step:
                raise ValueError(f"step {step} is done already; training.max_steps must be at least that")
        except ValueError as error:
            return str(error)
        for key in changes:
            old, new = steering.setting(self.profile, key), steering.setting(live, key)
            if key == "training.max_steps":
                old = self.state.max_steps
            self.voice.tell(Ledger(attempt=self.job.attempt, step=step, name=key, old=old, new=new))
        self.adopt(live)
        return ""

    def adopt(self, live: Profile) -> None:
        """Make changed settings count from the next step on."""
        self.profile = live
        self.args.max_grad_norm = live.training.max_grad_norm
        if live.training.max_steps is not None:
            self.args.max_steps = self.state.max_steps = live.training.max_steps
        if self.lr_scheduler is not None:
            self._reschedule(live.training.learning_rate)

    def _reschedule(self, base: float) -> None:
        """The same shape at the same step, from another base and to another last step."""
        position = self.lr_scheduler.last_epoch
        for group in self.optimizer.param_groups:
            group["initial_lr"] = base
        self.lr_scheduler = None
        scheduler = self.create_scheduler(num_training_steps=self.state.max_steps)
        scheduler.last_epoch = position
        for group, shape in zip(self.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * shape(position)
        scheduler.base_lrs = [base] * len(scheduler.base_lrs)
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.callback_handler.lr_scheduler = scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            # The file holds the base of its time; the profile, with what was changed since, says the present one.
            self._reschedule(self.profile.training.learning_rate)

    def _disk_trouble(self) -> str:
        """Why the disk asks for a pause; looked at every few seconds by rank 0."""
        if not self.ranks.first:
            return ""
        if self.voice.trouble and not self.voice.flush():
            return self.voice.trouble
        now = time.monotonic()
        if now - self._disk_looked < DISK_CHECK:
            return ""
        self._disk_looked = now
        return self._disk_low()

    def _disk_low(self) -> str:
        free = shutil.disk_usage(self.job.run.path).free / 1e9
        least = self.profile.limits.disk_free_gb
        return f"disk low: {free:.1f} GB free, limits.disk_free_gb is {least:g}" if free < least else ""

    def _pause(self, step: int, reason: str) -> None:
        """Wait at this boundary until told to go on; a full disk is left as soon as there is room."""
        before = self.voice.phase_name
        self.voice.tell(Ledger(attempt=self.job.attempt, step=step, name="pause", new=reason))
        self.voice.phase("paused", reason)
        looked = time.monotonic()
        going_on = False
        while not going_on and not self._stopping:
            room = False
            if self.ranks.first:
                self.job.inbox.arrived.wait(PAUSE_TURN)
                if reason.startswith("disk low") and time.monotonic() - looked > DISK_CHECK:
                    looked = time.monotonic()
                    room = self.voice.flush() and not self._disk_low()
            going_on = self._pause_turn(step, room)
        self.voice.tell(Ledger(attempt=self.job.attempt, step=step, name="continue", old=reason))
        self.voice.phase(before)

    def _pause_turn(self, step: int, room: bool) -> bool:
        """Carry out what has come while paused; whether the pause is over."""
        room, names = self._take_orders(step, room)
        return room or "continue" in names

    def _take_orders(self, step: int, word: Any) -> tuple[Any, list[str]]:
        """Rank 0's `word` and the waiting commands go to all ranks, which carry them out; returns the word and their names."""
        instructions = self.job.inbox.take() if self.ranks.first else []
        word, orders = self.ranks.broadcast((word, [(each.name, each.arguments) for each in instructions]))
        for index, (name, arguments) in enumerate(orders):
            refusal = self._carry_out(name, arguments, step)
            if instructions:
                problem = Problem(title=refusal) if refusal else None
                self.voice.link.answer(instructions[index], step=step, problem=problem)
        return word, [name for name, _ in orders]

    # ── evaluating and saving ─────────────────────────────────────────────────────────────────────────────────────

    def evaluate_now(self, step: int) -> None:
        """Held-out loss and the task's metrics after `step` steps; nothing without held-out rows, or when just done."""
        if self._evaluator is None or step in self.results:
            return
        self.voice.phase("evaluating")
        start = time.perf_counter()
        values, samples = self._evaluator(self)
        self.results[step] = values
        seconds = time.perf_counter() - start
        self.voice.tell(Evaluation(attempt=self.job.attempt, step=step, values=values, seconds=seconds))
        for sample in samples:
            self.voice.tell(Sample(attempt=self.job.attempt, step=step, **sample))
        self.voice.phase("training")

    def save_now(self, step: int) -> None:
        """A complete checkpoint of `step`, kept and listed; a full disk pauses until there is room."""
        if step == self.job.saved_step:
            return
        self.voice.phase("saving")
        states = self.ranks.gather(random_state())
        while trouble := self.ranks.broadcast(self._write_checkpoint(step, states)):
            self._pause(step, trouble)
            if self._stopping:
                self._warn(
                    step,
                    f"stopped without a checkpoint of step {step}: {trouble}",
                    "resume goes on from the one before",
                )
                return
        self.job.saved_step = step
        self.voice.phase("training")

    def _write_checkpoint(self, step: int, states: list[Any]) -> str:
        """By rank 0; returns why it could not be written."""
        if not self.ranks.first:
            return ""
        job, folder = self.job, self.job.run.checkpoint(step)
        try:
            checkpoints.write(folder, lambda place: self._fill(place, states))
        except OSError as error:
            return f"disk low: the checkpoint cannot be written ({error.strerror or error})"
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
        return ""

    def _fill(self, folder: Path, states: list[Any]) -> None:
        import torch

        job = self.job
        checkpoints.save_weights(self.model, job.tokenizer, folder, self.profile.model.dtype)
        (folder / "lock.json").write_text(job.lock_text(self.profile))
        inner = folder / checkpoints.TRAINER
        inner.mkdir()
        torch.save(self.optimizer.state_dict(), inner / "optimizer.pt")
        torch.save(self.lr_scheduler.state_dict(), inner / "scheduler.pt")
        if self.accelerator.scaler is not None:
            torch.save(self.accelerator.scaler.state_dict(), inner / "scaler.pt")
        torch.save(states, inner / "random.pt")
        self.state.save_to_json(str(inner / "trainer_state.json"))
        steering.store(inner / "steering.json", job.submitted, self.profile)
        if job.masters:
            torch.save({name: p.data for name, p in self.model.named_parameters()}, inner / "masters.pt")

    def _set_random_state(self, folder: Path) -> None:
        import numpy
        import torch

        states = torch.load(folder / "random.pt", weights_only=False, map_location="cpu")
        if len(states) != self.ranks.world:
            return  # another number of ranks: no state is theirs, and the session has said so
        state = states[self.ranks.rank]
        random.setstate(state["python"])
        numpy.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])


def random_state() -> dict[str, Any]:
    """All generators of this process."""
    import numpy
    import torch

    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
