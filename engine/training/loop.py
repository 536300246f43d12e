"""The training loop: what happens from the first step of an attempt to its last, in the order in which it happens.

One optimiser step is one global batch. Each rank computes its micro-batches without meeting the others; then the ranks vote (was memory enough,
what is the loss), add up their gradients, clip them and step. Between two steps lies the boundary: metrics are reported, commands are taken,
the model is evaluated and saved. Everything with a duty of its own is a collaborator that the loop calls by name:

method          `loss`, `units` and `measure`: what is optimised                                  methods/base.py
strategy        how ranks share the work: `prepare`, `reduce`, `clip`, `save`, `load`             parallel/
control         commands, changed settings and pauses                                             run_control.py
guard           batches that must not reach the weights, and memory that was not enough           bad_batch.py
evaluator       held-out loss, generated replies, early stopping                                  evaluator.py
checkpointer    complete checkpoints, and going on from one                                       checkpointer.py
reporter        the journal, phases and loggers                                                   reporter.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from engine.config.profile import Profile
from engine.protocol.journal import Ledger, Metrics
from engine.training import memory, optimizer_factory, performance, preflight
from engine.training.bad_batch import BadBatchGuard
from engine.training.checkpointer import Checkpointer
from engine.training.ema import WeightAverages
from engine.training.evaluator import Evaluator
from engine.training.exceptions import StopTraining
from engine.training.methods.base import Batch, MethodSetup, make_method, take_counts
from engine.training.parallel.choose import make_strategy
from engine.training.run_control import RunControl
from engine.training.schedule import make_schedule, rebase_schedule


class TrainingLoop:
    """One attempt of a run, from a step to its last. Every rank runs the same loop with its own rows."""

    def __init__(self, setup: MethodSetup, accelerator: Any, step: int, max_steps: int) -> None:
        """`step` steps are done; the loop ends after `max_steps`. Raises ProblemError for settings that this model cannot take."""
        job = self.job = setup.job
        self.profile: Profile = job.profile
        """The run's settings as they stand now; `control` may change them."""
        self.ranks, self.reporter, self.batches = job.ranks, job.reporter, setup.batches
        self.metrics, self.memory = setup.metrics, setup.memory
        self.step, self.max_steps, self.outcome = step, max_steps, "completed"
        self.accelerator = accelerator
        self.method = make_method(setup)
        self.strategy = make_strategy(self.profile.launch.strategy, accelerator, self.ranks)
        self.strategy.prepare(
            self.method.model, lambda model: optimizer_factory.make_optimizer(self.profile.training, model)
        )
        self.model = self.method.model = self.strategy.model
        self.optimizer = self.strategy.optimizer
        self.schedule = make_schedule(self.profile.training, self.optimizer, max_steps)
        self.loader = performance.make_loader(
            self.profile.training, job.device.kind, self.ranks.world, self.method, self.batches
        )
        ema = self.profile.training.ema
        self.averages = WeightAverages(self.model, ema.decay) if ema else None
        self.evaluator = Evaluator(self)
        self.checkpointer = Checkpointer(self)
        self.guard = BadBatchGuard(self)
        self.control = RunControl(self)

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Train to the last step, or until told to stop. `on_ready` is called when everything is in place, with how exact a resume is.

        Raises RestartFrom when model and loop must be built anew, and whatever the libraries raise.
        """
        self.begin(on_ready)
        try:
            while not self.is_finished():
                for micro_batches in self.epoch_batches():
                    self.train_step(micro_batches)
                    self.end_step()
                    if self.is_finished():
                        break
        except StopTraining:
            self.outcome = "stopped"

    def begin(self, on_ready: Callable[[str], None]) -> None:
        """Everything before the first step: resume, preflight, evaluation at the start, commands that wait already."""
        self.model.train()
        resumed = self.checkpointer.resume()
        on_ready(resumed)
        if self.profile.training.rehearsal:
            preflight.rehearse(self, fresh=not resumed)
        self.reporter.set_phase("first step")
        if self.step == 0 and self.profile.evaluation.at_start:
            self.evaluate()
        self.control.take_commands()
        self.end_if_finished()
        self.metrics.start_step()

    # ── one optimiser step ────────────────────────────────────────────────────────────────────────────────────────

    def epoch_batches(self) -> Iterator[list[Batch]]:
        """This rank's micro-batches of one global batch after another, to the end of the epoch that the next step belongs to."""
        self.batches.step = self.step
        batches = iter(self.loader)
        while True:
            # Before anything is drawn for it: a step that is held back is saved as it began.
            self.checkpointer.mark_step_begin()
            micro_batches = list(itertools.islice(batches, self.batches.accumulation))
            if not micro_batches:
                self.checkpointer.mark_step_end()
                return
            yield micro_batches

    def train_step(self, micro_batches: list[Batch]) -> None:
        """Forward and backward passes, the ranks' vote, one update of the weights."""
        for batch in micro_batches:
            rows, tokens = take_counts(batch)
            self.metrics.rows += rows
            self.metrics.tokens += tokens
        self.memory.reset()
        micro_batches = self.method.begin_global_batch(micro_batches, self.step)
        units = max(self.ranks.sum([sum(map(self.method.units, micro_batches))])[0], 1.0)
        share = self.compute_gradients(micro_batches, units)
        loss = self.guard.vote(share)
        self.strategy.reduce()
        self.grad_norm = self.strategy.clip(self.profile.training.max_grad_norm)
        self.guard.check(loss, self.grad_norm)
        self.optimizer.step()
        self.learning_rate = self.schedule.get_last_lr()[0]
        if not self.accelerator.optimizer_step_was_skipped:  # the loss scaler found a gradient that overflowed
            self.schedule.step()
        self.model.zero_grad()
        self.loss_share = share

    def compute_gradients(self, micro_batches: list[Batch], units: float) -> float:
        """Add the gradients of these micro-batches to the weights; returns this rank's share of the loss of the global batch."""
        import torch

        loss = torch.zeros((), device=self.job.device.name)
        for batch in micro_batches:
            if self.memory.error:
                break
            with self.memory.catch(), self.strategy.micro_batch():
                part = self.method.loss(self.model, self.method.to_device(batch), units)
                self.accelerator.backward(part)
                loss += part.detach()
        if self.memory.error:
            self.drop_gradients()
            memory.release()
        return float(loss.item())

    def drop_gradients(self) -> None:
        """Forget the gradients; an optimiser step without gradients changes nothing."""
        for parameter in self.model.parameters():
            parameter.grad = None

    # ── the boundary between two steps ────────────────────────────────────────────────────────────────────────────

    def end_step(self) -> None:
        """Report the step, evaluate and save when due, take commands."""
        self.step += 1
        self.job.inbox.step = self.step
        self.checkpointer.mark_step_end()
        self.metrics.end_step(self.loss_share)
        if self.averages:
            self.averages.update(self.step)
        self.reporter.link.report_progress(step=self.step)
        self.report()
        if self.reporter.phase_name != "training":
            self.reporter.set_phase("training")
        last = self.step >= self.max_steps
        if self.is_due(self.profile.evaluation.every_steps) or last:
            self.evaluate()
        if self.is_due(self.profile.checkpoint.every_steps) or last:
            self.control.save()
        self.control.take_commands()
        self.end_if_finished()
        self.metrics.start_step()

    def is_due(self, every_steps: int | None) -> bool:
        """Whether something that happens so often, by default once per epoch, happens now."""
        return self.step % (every_steps or self.batches.per_epoch) == 0

    def evaluate(self) -> None:
        """An evaluation that the cadence asks for: it also counts for early stopping."""
        self.guard.evaluate()
        self.evaluator.check_patience()

    def is_finished(self) -> bool:
        """Whether this was the last step, nothing gets better any more, or the run was told to stop."""
        return self.step >= self.max_steps or bool(self.evaluator.stop_reason) or self.control.stopping

    def end_if_finished(self) -> None:
        """Save a finished run."""
        if not self.is_finished():
            return
        early = self.evaluator.stop_reason if self.step < self.max_steps else ""
        if early:
            self.reporter.write(
                Ledger(
                    attempt=self.job.attempt,
                    code="mark.early_stopping",
                    step=self.step,
                    name="early stopping",
                    new=early,
                )
            )
        self.outcome = "completed" if early or self.step >= self.max_steps else "stopped"
        self.control.save()

    def report(self) -> None:
        """Metrics of the steps since the last report, of all ranks."""
        if self.step % self.profile.logging.every_steps and self.step < self.max_steps:
            return
        values = self.metrics.report(self.ranks)
        self.evaluator.watch_training_loss(values["train/loss"])
        values |= {"train/learning_rate": float(self.learning_rate), "train/grad_norm": float(self.grad_norm)}
        values |= self.job.device_peak()
        done, index = divmod(self.step - 1, self.batches.per_epoch)
        epoch = done + (index + 1) / self.batches.per_epoch
        self.reporter.write(Metrics(attempt=self.job.attempt, step=self.step, epoch=epoch, values=values))

    # ── what collaborators ask of the loop ────────────────────────────────────────────────────────────────────────

    def apply_settings(self, live: Profile) -> None:
        """Make changed settings count from the next step on."""
        self.profile = live
        if live.training.max_steps is not None:
            self.max_steps = live.training.max_steps
        self.schedule = rebase_schedule(self.schedule, live.training, self.max_steps)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within, the model has the weights that the run evaluates and saves."""
        return self.averages.swap_in() if self.averages else nullcontext()
