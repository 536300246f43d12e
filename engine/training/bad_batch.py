"""Keeps bad batches away from the weights: a loss or gradient that is not finite, a loss spike, or a lack of memory.

The ranks vote once per global batch, after their backward passes and before the update. A rank that ran out of memory
reports it in this vote, and has sent zeros where others wait for its gradients.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.config.settable import SETTABLE
from engine.models import accelerator
from engine.protocol.codes import Pause
from engine.protocol.journal import BadBatch, BadRow, Ledger
from engine.training import exhausted, live_settings, memory
from engine.training.exceptions import RestartFrom, StopTraining
from engine.training.methods.base import take_counts

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

ROWS_KEPT = 32
"""Rows of a bad batch that are journaled, the worst first."""
CHARACTERS_KEPT = 600
"""Characters journaled of each row's text."""
HISTORY = 32
"""Number of recent losses that a spike is compared with; no spike is detected with fewer than half of them."""


class BadBatchGuard:
    """Every rank calls every method here at the same step."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self.recent_losses: deque[float] = deque(maxlen=HISTORY)

    def vote(self, share: float, *, rehearsed: bool = False) -> float:
        """The loss of the global batch: the sum of the ranks' shares. Raises RestartFrom with smaller micro-batches
        when a rank ran out of memory."""
        failures, loss = self._loop.ranks.sum([bool(self._loop.memory.error), share])
        if failures:
            self._cut_micro_batch(rehearsed=rehearsed)
        return loss

    def check(self, loss: float, norm: Any) -> None:
        """Hold back a bad batch before its update. All ranks have the same loss and the same gradient norm."""
        loop = self._loop
        if loop.job.skipped and loop.job.skipped.issuperset(loop.batches.rows_of(loop.step)):
            loop.drop_gradients()  # all its rows are skipped: a step that changes nothing
        elif pause := self._find_fault(loss, norm):
            self._hold_back(pause)
        else:
            self.recent_losses.append(loss)

    def evaluate(self, *, rehearsed: bool = False) -> None:
        """Evaluate, or try what takes the most memory of it. Raises RestartFrom with smaller micro-batches when a rank
        runs out of memory."""
        watch, evaluator = self._loop.memory, self._loop.evaluator
        with watch.catch():
            evaluator.rehearse() if rehearsed else evaluator.evaluate()
        if watch.error:
            self._cut_micro_batch(rehearsed=rehearsed)

    # ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _cut_micro_batch(self, *, rehearsed: bool = False) -> None:
        """Raises RestartFrom with smaller micro-batches, from the last completed step; or OutOfMemoryError when a
        micro-batch is one row already."""
        import torch

        loop = self._loop
        step, live = loop.step, memory.smaller_micro_batch(loop.profile, max(loop.batches.lengths))
        cause = next(filter(None, loop.ranks.gather(loop.memory.error)))
        loop.drop_gradients()
        accelerator.release()
        if live is None:
            raise torch.OutOfMemoryError(cause)
        loop.memory.reset()
        if not rehearsed:
            loop.control.save()
        exhausted.report_cut(loop.job, step, live, cause)
        raise RestartFrom(live, None if rehearsed and step == 0 else step)

    # ── a bad batch ───────────────────────────────────────────────────────────────────────────────────────────────

    def _find_fault(self, loss: float, norm: Any) -> Pause | None:
        """The pause that this batch requires; None for a good one."""
        if not math.isfinite(loss):
            return Pause(code="pause.loss_not_finite", reason="loss not finite")
        if self._loop.accelerator.scaler is None and not math.isfinite(norm):
            return Pause(code="pause.gradient_not_finite", reason="gradient not finite")
        return find_spike(loss, self.recent_losses, self._loop.profile.limits.loss_spike)

    def _hold_back(self, pause: Pause) -> None:
        """Report the batch, pause, and carry out the user's choice."""
        loop, step = self._loop, self._loop.step
        rows = [row for row in loop.batches.rows_of(step) if row not in loop.job.skipped]
        described = describe_rows(loop, rows)
        loop.reporter.write(
            BadBatch(
                attempt=loop.job.attempt,
                code=pause.code,
                step=step,
                reason=pause.reason,
                rows=described[:ROWS_KEPT],
                total=len(described),
            )
        )
        loop.reporter.warn(
            code="training.batch_held",
            step=step,
            message=f"step {step + 1} is held back: {pause.reason}; its update has not been applied",
            hint="look at its rows; then `cockpit continue RUN --skip` leaves them out, `--rollback` returns to the "
            "checkpoint before and leaves them out, `cockpit continue RUN` continues",
        )
        loop.control.held_rows = rows
        choice = loop.control.pause(pause)
        loop.control.held_rows = ()
        if loop.control.stopping:
            loop.control.save()
            raise StopTraining
        if choice == "rollback":
            self._roll_back(rows)
        if choice == "skip":
            loop.control.save()
            self._write_ledger(step, live_settings.SKIPPED, None, rows, code="mark.skip")
            loop.job.skipped.update(rows)
        if choice == "skip" or pause.code != "pause.loss_spike":
            loop.drop_gradients()

    def _roll_back(self, rows: list[int]) -> None:
        """Raises RestartFrom from the checkpoint before, with the current settings."""
        loop, job = self._loop, self._loop.job
        target = loop.ranks.broadcast(loop.checkpointer.newest_before(loop.step))
        then = loop.checkpointer.read_settings(target)
        self._write_ledger(target, "rollback", loop.step, target, code="mark.rollback")
        self._write_ledger(target, live_settings.SKIPPED, None, rows, code="mark.skip")
        for key in SETTABLE:
            before, now = live_settings.get_setting(then, key), live_settings.get_setting(loop.profile, key)
            if before != now:
                self._write_ledger(target, key, before, now, code="mark.setting")
            job.replayed[key] = now
        job.skipped.update(rows)
        raise RestartFrom(loop.profile, target)

    def _write_ledger(self, step: int, name: str, old: Any, new: Any, *, code: str) -> None:
        attempt = self._loop.job.attempt
        self._loop.reporter.write(Ledger(attempt=attempt, code=code, step=step, name=name, old=old, new=new))


def find_spike(loss: float, recent: Iterable[float], factor: float | None) -> Pause | None:
    """The pause for a loss above `factor` times the median of the recent losses, else None.

    Also None where a factor has no meaning: with too few recent losses, and when their median is not positive.
    """
    losses = list(recent)
    if factor is None or len(losses) < HISTORY // 2:
        return None
    usual = statistics.median(losses)
    if usual <= 0 or loss <= factor * usual:
        return None
    reason = f"loss spike: {loss:.4g}, {loss / usual:.3g} times the usual {usual:.4g} (limits.loss_spike is {factor:g})"
    return Pause(code="pause.loss_spike", reason=reason)


def describe_rows(loop: TrainingLoop, rows: Sequence[int]) -> list[BadRow]:
    """The rows of a global batch, each with its text and its own loss, the worst first. The ranks share the work, and
    all get the result."""
    with loop.strategy.in_step():
        mine = [_describe_row(loop, row) for row in rows[loop.ranks.rank :: loop.ranks.world]]
    found = [row for share in loop.ranks.gather(mine) for row in share]
    return sorted(found, key=lambda row: (row.loss is not None, -(row.loss or 0.0), row.row))


def _describe_row(loop: TrainingLoop, number: int) -> BadRow:
    row = loop.method.rows[number]
    columns = [name for name in row if name.endswith("ids") and name != "position_ids"]
    text = "\n".join(loop.job.tokenizer.decode(row[name]) for name in columns)
    return BadRow(
        row=number,
        text=text if len(text) <= CHARACTERS_KEPT else f"{text[:CHARACTERS_KEPT]}…",
        tokens=sum(len(row[name]) for name in columns),
        loss=_measure_loss(loop, row),
    )


def _measure_loss(loop: TrainingLoop, row: dict[str, list[int]]) -> float | None:
    """The row's mean loss without dropout; None when it is not finite. Model, gradients and generators stay
    unchanged."""
    import torch

    batch = loop.method.collate([row])
    take_counts(batch)
    batch = loop.method.to_device(batch)
    loop.model.eval()
    try:
        with torch.no_grad(), loop.job.device.autocast():
            loss: float = loop.method.measure(batch)["loss"] / max(loop.method.units(batch), 1)
    finally:
        loop.model.train()
    return loss if math.isfinite(loss) else None
