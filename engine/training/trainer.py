"""What every method's trainer does at a step boundary: say how the step went, obey, evaluate, save.

`Steered` goes in front of a transformers or trl trainer and replaces its logging, evaluating and saving with ours. The
library keeps the loop: batches, backward passes, clipping, optimiser, schedule, resume.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from engine.prep.batching import Collate
from engine.protocol.journal import Ledger, Metrics
from engine.training import performance, preflight, resuming
from engine.training.early_stopping import Patience
from engine.training.ema import Averages
from engine.training.evaluator import HeldOut
from engine.training.guarding import Guarding, recent
from engine.training.host import Host
from engine.training.overfitting import Overfitting

if TYPE_CHECKING:
    from engine.training.assemble import Parts

_HUGE = 2**31


@dataclass
class Tally:
    """What this rank has computed since the last report. Seconds are those of steps alone."""

    loss: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    noted: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Further metrics: (sum, number of what it sums)."""
    mark: float = field(default_factory=time.perf_counter)


class Steered(Guarding):
    """Mixin before a `transformers.Trainer`; a method's trainer says what a loss is divided by and how held-out rows are measured."""

    def __init__(self, parts: Parts, *, collate: Collate, args: Any, **library: Any) -> None:
        """`collate` makes micro-batches whose `rows` and `tokens` are counts; `library` is what the library's trainer wants besides."""
        import torch
        from torch.utils.data import DataLoader

        self.job = job = parts.job
        self.ranks, self.voice, self.profile = job.ranks, job.voice, job.profile
        self.windows, self.collate = parts.windows, collate
        # A generator of its own: the loader must not draw from the one that dropout uses.
        self._loader = DataLoader(
            parts.rows,
            batch_sampler=parts.windows,
            collate_fn=collate,
            generator=torch.Generator(),
            **performance.loading(job.profile.training.workers, job.device.kind, job.ranks.world),
        )
        asked = parts.held_out is not None or job.profile.evaluation.probes
        self._evaluator = HeldOut(job, parts.held_out, collate) if asked else None
        self.outcome = "completed"
        self.results: dict[int, dict[str, float]] = {}
        self._tally = Tally()
        self._overfitting = Overfitting()
        self._boundary = 0
        self._begun = False
        self._opening = None
        self._recent = recent()
        self._host = Host(job.run.path, job.inbox.pids)
        self.greet: Callable[[str], None] = lambda drift: None
        """Called when all is in place, with how a resume went."""
        super().__init__(
            model=parts.model, args=args, train_dataset=parts.rows, processing_class=job.tokenizer, **library
        )
        for callback in list(self.callback_handler.callbacks)[1:]:
            self.remove_callback(callback)  # all but the flow: printing is ours
        if settings := job.profile.training.ema:
            self.averages = Averages(self.model, settings.decay)
        if stopping := job.profile.evaluation.early_stopping:
            self.patience = Patience(stopping)

    foldable = True
    """Whether held-out rows may be measured with the adapter added into the weights (see `inference.folding`)."""

    # ── what a method says ────────────────────────────────────────────────────────────────────────────────────────

    def units(self, batch: dict[str, Any]) -> int:
        """What the loss of this micro-batch is a sum over: trained tokens, pairs …; the library is told that of the global batch."""
        raise NotImplementedError

    def measure(self, inputs: dict[str, Any]) -> dict[str, float]:
        """Sums over the units of held-out rows, `loss` among them, by metric. The model is in evaluation mode, without gradients."""
        raise NotImplementedError

    def held_out_values(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics of held-out rows by name, of the means of what `measure` gave."""
        return means

    def ordinary(self) -> None:
        """Ordinary batches follow, as generation's."""

    def note(self, name: str, total: float, count: float) -> None:
        """Count towards the mean of the metric `name`, such as `train/accuracy`, at the next report. On every rank alike."""
        before = self._tally.noted.get(name, (0.0, 0.0))
        self._tally.noted[name] = (before[0] + total, before[1] + count)

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
        """A window's micro-batches and its units, over all ranks; ours to count on the way."""
        opening = self.snapshot()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._opening, self._exhausted = opening if batches else None, ""
        self._tally.rows += sum(batch.pop("rows") for batch in batches)
        self._tally.tokens += sum(batch.pop("tokens") for batch in batches)
        units = self.ranks.sum([sum(self.units(batch) for batch in batches)])[0]
        return batches, max(units, 1.0)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The session has put the weights in place; the rest of a resume is the library's."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Done before the first step, in `_begin`; fetching the batches to pass over draws nothing."""

    # ── the boundary ──────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> dict[str, Any]:
        tally = {field.name: getattr(self._tally, field.name) for field in fields(Tally)}
        return {
            "random": resuming.random_state(),
            "tally": tally | {"noted": dict(self._tally.noted)},
            "recent": list(self._recent),
        }

    def take_up(self, snapshot: dict[str, Any]) -> None:
        resuming.set_random_state(snapshot["random"])
        self._tally = Tally(**snapshot["tally"] | {"mark": time.perf_counter()})
        self._recent = recent(snapshot["recent"])

    def _begin(self, step: int) -> None:
        """Before the first step of this attempt, with everything in place."""
        self._begun = True
        self._boundary = step
        self.greet(resuming.take_up(self, self._resumed) if self._resumed else "")
        if self.profile.training.rehearsal:
            preflight.rehearse(self, fresh=self._resumed is None)
        if step == 0 and self.profile.evaluation.at_start:
            self.evaluate_now(step)
            self._look(step)
        self._obey(step)
        self._end_if_done(step)
        self.voice.phase("first step")
        self._tally.mark = time.perf_counter()

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
        self._opening = None
        self._account(tr_loss)
        if self.averages:
            self.averages.update(step)
        self.voice.link.report_progress(step=step)
        self._report(step, grad_norm, learning_rate)
        if self.voice.phase_name != "training":
            self.voice.phase("training")
        last = step >= self.state.max_steps
        if self._due(step, self.profile.evaluation.every_steps) or last:
            self.evaluate_now(step)
            self._look(step)
        if self._due(step, self.profile.checkpoint.every_steps) or last:
            self.save_now(step)
        self._obey(step)
        self._end_if_done(step)
        self._tally.mark = time.perf_counter()

    def _end_if_done(self, step: int) -> None:
        """Leave the loop when told to stop, when nothing gets better any more, or when this was the last step (which a command may
        have moved to here)."""
        done = step >= self.state.max_steps or bool(self._early)
        if done or self._stopping:
            if self._early and step < self.state.max_steps:
                self.voice.tell(Ledger(attempt=self.job.attempt, step=step, name="early stopping", new=self._early))
            self.outcome = "completed" if done else "stopped"
            self.save_now(step)
            self.control.should_training_stop = True

    def _account(self, tr_loss: Any) -> None:
        now = time.perf_counter()
        self._tally.seconds += now - self._tally.mark
        self._tally.steps += 1
        loss = tr_loss.item() / self.ranks.world
        tr_loss.zero_()  # a difference of NaN and itself would stay NaN
        self._tally.loss += loss

    def _due(self, step: int, every: int | None) -> bool:
        return step % (every or self.windows.per_epoch) == 0

    def _report(self, step: int, grad_norm: Any, learning_rate: float | None) -> None:
        """Metrics of the steps since the last report, once the whole has been added up over the ranks."""
        last = step >= self.state.max_steps
        if step % self.profile.logging.every_steps and not last:
            return
        tally, self._tally = self._tally, Tally()
        loss, rows, tokens, *noted = self.ranks.sum(
            [tally.loss / tally.steps, tally.rows, tally.tokens, *itertools.chain(*tally.noted.values())]
        )
        values: dict[str, float | None] = {
            "train/loss": loss,
            "train/learning_rate": learning_rate,
            "train/grad_norm": float(grad_norm),
            "train/tokens_per_second": tokens / tally.seconds,
            "train/samples_per_second": rows / tally.seconds,
            "train/step_seconds": tally.seconds / tally.steps,
        }
        means = zip(tally.noted, noted[::2], noted[1::2], strict=True)
        values |= {name: total / count for name, total, count in means if count}
        self._overfitting.trained(loss)
        values |= self.job.device_peak()
        self.voice.tell(Metrics(attempt=self.job.attempt, step=step, epoch=self.state.epoch, values=values))
