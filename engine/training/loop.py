"""The training loop: everything that happens from the first step of an attempt to its last, in order.

One optimiser step is one global batch. Each rank computes its micro-batches without communicating. Before the last
backward pass the ranks vote (was there enough memory); with `ddp` and `zero1` they sum their gradients during it. Then
they vote again (was there enough, what is the loss), clip the gradients and step. At the boundary between two steps,
metrics are reported, the model is evaluated and saved, and commands are carried out. Each separate duty belongs to a
collaborator that the loop calls by name:

method          `loss`, `units` and `measure`: what is optimised                        methods/base.py
strategy        how ranks share the work: `prepare`, `reduce`, `clip`, `save`, `load`   parallel/
control         commands, changed settings and pauses                                   run_control.py
guard           batches that must not reach the weights, and running out of memory      bad_batch.py
evaluator       held-out loss, replies, drift, benchmarks, early stopping               evaluator.py
checkpointer    complete checkpoints, and resuming from one                             checkpointer.py
reporter        the journal, phases and loggers                                         reporter.py
ledger          each training row's loss in each epoch                                  row_ledger.py
clock           where a step's time goes: each `lap` ends a part of it                  step_clock.py
cards           heat and faults of the ranks' cards                                     card_watch.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.config.profile import Profile
from engine.models import accelerator
from engine.protocol.journal import Ledger, Metrics
from engine.training import optimizer_factory, performance, preflight
from engine.training.bad_batch import BadBatchGuard
from engine.training.card_watch import CardWatch
from engine.training.checkpointer import Checkpointer
from engine.training.ema import WeightAverages
from engine.training.evaluator import Evaluator
from engine.training.exceptions import StopTraining
from engine.training.methods.base import Batch, MethodSetup, make_method, take_counts
from engine.training.movement import Movement
from engine.training.routers import Routers
from engine.training.row_ledger import RowLedger
from engine.training.run_control import RunControl
from engine.training.schedule import make_schedule, rebase_schedule
from engine.training.step_clock import StepClock
from engine.training.step_trace import StepTrace
from engine.training.utilisation import Utilisation


class TrainingLoop:
    """One attempt of a run. Every rank runs the same loop with its own rows."""

    def __init__(self, setup: MethodSetup, step: int, max_steps: int) -> None:
        """`step` steps are already done; the loop ends after `max_steps`. Raises ProblemError for settings that do not
        work with this model."""
        job = self.job = setup.job
        self.profile: Profile = job.profile
        """The run's current settings; `control` may change them."""
        self.ranks, self.reporter, self.batches = job.ranks, job.reporter, setup.batches
        self.metrics, self.memory = setup.metrics, setup.memory
        self.clock = StepClock("cpu" if job.simulated else job.device.kind, self.ranks)  # a simulated one has no queue
        self.cards = CardWatch(job.device, self.ranks, simulated=job.simulated)
        self.step, self.max_steps, self.outcome = step, max_steps, "completed"
        self.strategy, self.accelerator = setup.strategy, setup.strategy.accelerator
        self.method = make_method(setup)
        self.routers = Routers(self.method.model, self.profile.training.router_aux_loss)
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
        compute = str(job.device.compute).removeprefix("torch.")
        kind = self.profile.method.kind
        self.utilisation = Utilisation(self.model, kind, job.device.label, compute, self.ranks.world)
        self.averages = WeightAverages(self.model, ema.decay) if ema else None
        self.evaluator = Evaluator(self)
        self.checkpointer = Checkpointer(self)
        self.guard = BadBatchGuard(self)
        self.ledger = RowLedger(self)
        self.control = RunControl(self)
        self.trace = StepTrace(self)

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Train to the last step, or until the run is stopped. `on_ready` is called before the first step with a
        description of how exact a resume is.

        Raises RestartFrom when the model and the loop must be built again, and whatever the libraries raise.
        """
        self.job.inbox.looping = True
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
        finally:
            self.cards.stop()
            self.trace.close()
            self.ledger.close()
            self.checkpointer.close()

    def begin(self, on_ready: Callable[[str], None]) -> None:
        """Do everything that precedes the first step: resume, preflight, evaluation at the start, waiting commands."""
        self.model.train()
        resumed = self.checkpointer.resume()
        self.movement = Movement(self.model)
        on_ready(resumed)
        if self.profile.training.rehearsal:
            preflight.rehearse(self, fresh=not resumed)
        self.ledger.begin()
        self.evaluator.drift.begin()
        self.reporter.set_phase("first step")
        if self.step == 0 and self.profile.evaluation.at_start:
            self.evaluate()
        self.control.take_commands()
        self.end_if_finished()
        self.metrics.start_step()
        self.clock = StepClock(self.job.device.kind, self.ranks)  # without the passes of the rehearsal

    # ── one optimiser step ────────────────────────────────────────────────────────────────────────────────────────

    def epoch_batches(self) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of each global batch, to the end of the epoch of the next step."""
        self.batches.step = self.step
        batches, numbers = iter(self.loader), self.ledger.number_batches()
        while True:
            # Before any random number is drawn for the step: one that is held back is saved in the state it began with.
            self.checkpointer.mark_step_begin()
            self.clock.lap("")
            micro_batches = list(itertools.islice(batches, self.batches.count_micro_batches(self.step)))
            self.clock.lap("data")
            if not micro_batches:
                self.checkpointer.mark_step_end()
                return
            self.ledger.expect(numbers, len(micro_batches))
            yield micro_batches

    def train_step(self, micro_batches: list[Batch]) -> None:
        """Compute the gradients, let the ranks vote, and update the weights once."""
        for batch in micro_batches:
            rows, tokens = take_counts(batch)
            self.metrics.rows += rows
            self.metrics.tokens += tokens
            self.clock.add_batch(batch, tokens)
        self.memory.reset()
        micro_batches = self.method.begin_global_batch(micro_batches, self.step)
        self.clock.lap("rollouts")
        units = max(self.ranks.sum([sum(map(self.method.units, micro_batches))])[0], 1.0)
        self.clock.lap("wait")
        share = self.compute_gradients(micro_batches, units, reducing=True)
        self.ledger.record()
        self.clock.lap("logging")
        loss = self.guard.vote(share)
        self.clock.lap("wait")
        with self.ranks.waiting():  # the norm is there once all ranks have sent their gradients
            self.strategy.reduce()
            self.grad_norm = float(self.strategy.clip(self.profile.training.max_grad_norm))
        self.clock.lap("reduction")
        self.guard.check(loss, self.grad_norm)
        self.clock.lap("")
        self.optimizer.step()
        self.learning_rate = self.schedule.get_last_lr()[0]
        if not self.accelerator.optimizer_step_was_skipped:  # the loss scaler found a gradient that overflowed
            self.schedule.step()
        self.optimizer.zero_grad()
        self.loss_share = share
        self.clock.lap("optimizer")

    def compute_gradients(self, micro_batches: list[Batch], units: float, *, reducing: bool = False) -> float:
        """Accumulate the gradients of these micro-batches; returns this rank's share of the global batch's loss. With
        `reducing`, their sums over all ranks are under way afterwards."""
        import torch

        loss = torch.zeros((), device=self.job.device.name)
        there = part = None
        for number, batch in enumerate(micro_batches, 1):
            if self.memory.error:
                break
            last = number == len(micro_batches)
            with self.memory.catch(), self.strategy.micro_batch(last=last):
                there = self.method.to_device(batch)
                self.clock.lap("copy")
                with self.routers.watch():
                    part = self.method.loss(self.model, there, units)
                part = part + self.routers.auxiliary_loss(self.method.units(batch) / units)
                self.clock.lap("forward")
                if reducing and last:
                    reducing = False
                    self.strategy.begin_reduction(failed=False)
                    self.clock.lap("wait")
                self.strategy.backward(part)
                loss += part.detach()
                self.clock.lap("backward")
        if reducing:  # the last forward pass was not reached, or has failed
            self.strategy.begin_reduction(failed=bool(self.memory.error))
        if not self.memory.error:
            with self.memory.catch():
                self.strategy.end_pass()
        if self.memory.error:
            there = part = None  # a failed pass has left activations, and the other ranks wait for buffers from here
            self.drop_gradients()
            accelerator.release()
        found = float(loss.item())  # waits until the device is done
        self.clock.lap("backward")
        self.clock.move("backward", "reduction", self.strategy.take_waited())
        return found

    def drop_gradients(self) -> None:
        """Drop the gradients; an optimiser step without gradients changes nothing."""
        self.strategy.settle()
        self.strategy.drop()

    # ── the boundary between two steps ────────────────────────────────────────────────────────────────────────────

    def end_step(self) -> None:
        """Report the step, evaluate and save when due, carry out commands."""
        self.step += 1
        self.job.inbox.step = self.step
        self.trace.end_step()
        self.checkpointer.mark_step_end()
        self.metrics.end_step(self.loss_share)
        self.clock.end_step()
        if self.averages:
            self.averages.update(self.step)
        self.reporter.link.report_progress(step=self.step)
        self.report()
        if self.reporter.phase_name != "training":
            self.reporter.set_phase("training")
        self.clock.lap("logging")
        last = self.step >= self.max_steps
        if self.is_due(self.profile.evaluation.every_steps) or last:
            self.evaluate()
            self.movement.compare()
            self.clock.lap("evaluation")
        elif self.evaluator.benchmarks.is_due():
            self.guard.evaluate()
            self.clock.lap("evaluation")
        if self.is_due(self.profile.checkpoint.every_steps) or last:
            self.control.save(background=not last)
            self.movement.compare()
            self.clock.lap("saving")
        self.control.take_commands()
        self.end_if_finished()
        self.metrics.start_step()
        self.clock.begin()

    def is_due(self, every_steps: int | None) -> bool:
        """Whether something done every `every_steps` steps (None: once per epoch) is due after this step."""
        return self.step % (every_steps or self.batches.per_epoch) == 0

    def evaluate(self) -> None:
        """Evaluate on schedule; such an evaluation also counts for early stopping."""
        self.guard.evaluate()
        self.evaluator.check_patience()

    def is_finished(self) -> bool:
        """Whether this was the last step, or the run stops early or was stopped by a command."""
        return self.step >= self.max_steps or bool(self.evaluator.stop_reason) or self.control.stopping

    def end_if_finished(self) -> None:
        """Record the outcome of a finished run and save it."""
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
        """Report the metrics of all ranks over the steps since the last report."""
        if self.step % self.profile.logging.every_steps and self.step < self.max_steps:
            return
        values, summed = self.metrics.report(self.ranks, self.clock.take_busy() + self.cards.take())
        busy, cards = summed[: self.ranks.world], summed[self.ranks.world :]
        self.evaluator.watch_training_loss(values["train/loss"])
        values |= self.routers.report(self.ranks)
        values |= {"train/learning_rate": float(self.learning_rate), "train/grad_norm": float(self.grad_norm)}
        values |= self.job.device_peak()
        if self.step >= self.max_steps:
            self.movement.compare()
        values |= self.movement.take()
        if split := self.clock.publish(busy, last=self.step >= self.max_steps):
            values |= split | self.utilisation.describe(values["train/tokens_per_second"])
            values |= self.cards.describe(cards, split.get("time/slowest_rank"))
        done, index = divmod(self.step - 1, self.batches.per_epoch)
        epoch = done + (index + 1) / self.batches.per_epoch
        self.reporter.write(Metrics(attempt=self.job.attempt, step=self.step, epoch=epoch, values=values))

    # ── for the collaborators ─────────────────────────────────────────────────────────────────────────────────────

    def apply_settings(self, live: Profile) -> None:
        """Apply changed settings from the next step on."""
        self.profile = live
        if live.training.max_steps is not None:
            self.max_steps = live.training.max_steps
        self.schedule = rebase_schedule(self.schedule, live.training, self.max_steps)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Context in which the model has the weights that the run evaluates and saves."""
        if self.averages is None:
            yield
            return
        self.strategy.settle()
        with self.averages.swap_in():
            yield
            self.strategy.settle()
