"""Between a window's backward passes and its update: what does not fit, and what must not reach the weights.

Every rank computes its micro-batches on its own; they meet once a window, here, before the gradients are added up. So a rank
that ran out of memory can say so, and nobody waits for it in vain.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from engine.protocol.codes import Pause
from engine.protocol.journal import BadBatch, Ledger
from engine.protocol.settable import SETTABLE
from engine.training import checkpoints, memory, steering
from engine.training.saving import Saving
from engine.training.trouble import RECENT, SHOWN, Again, Leave, autopsy, spike

BUCKET = 32 * 2**20
"""Bytes of gradients that travel together."""


class Guarding(Saving):
    """Mixin of `Steered`."""

    apart = True
    """Whether a method's forward and backward pass needs no other rank. One whose loss gathers from the others says False:
    a rank that runs out of memory then ends the run."""
    rehearsable = True
    """Whether `training_step` on any rows leaves nothing behind but gradients, `note`s and drawn numbers. A method that keeps more says False."""
    _exhausted = ""
    """What the allocator said in this window, on this rank."""
    _window_loss = 0.0
    """The loss of the window, over all ranks."""
    _recent: deque[float]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        import torch

        if not self._exhausted:
            try:
                with self._unreduced(model):
                    return super().training_step(model, inputs, num_items_in_batch)
            except Exception as error:
                if not memory.exhausted(error) or (self.ranks.world > 1 and not self._reduces(model)):
                    raise
                self._exhausted = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._drop_gradients()
            memory.release()
        return torch.zeros((), device=self.args.device)

    def _clip_grad_norm(self, model: Any) -> Any:
        self._meet_ranks(model)
        return self._guard(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return grad_norm
        self._meet_ranks(model)
        return self._guard(super()._get_grad_norm(model))

    # ── the ranks ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reduces(self, model: Any) -> bool:
        """Whether the gradients of several ranks are added up here; other strategies do it in their backward pass."""
        from torch.nn.parallel import DistributedDataParallel

        return self.apart and isinstance(model, DistributedDataParallel)

    def _unreduced(self, model: Any) -> Any:
        return model.no_sync() if self._reduces(model) else nullcontext()

    def _meet_ranks(self, model: Any) -> None:
        """Add up the loss and the gradients; raises Again when a rank could not compute its share."""
        self._window_loss = self._agree_on_memory(self._tr_loss.item() / self.ranks.world)
        self._add_up_gradients(model)

    def _agree_on_memory(self, share: float = 0.0, *, rehearsed: bool = False) -> float:
        """The sum of the ranks' shares of a loss; raises Again when memory was not enough on one of them."""
        exhausted, loss = self.ranks.sum([bool(self._exhausted), share])
        if exhausted:
            self._cut_batches(self.state.global_step, rehearsed=rehearsed)
        return loss

    def _add_up_gradients(self, model: Any) -> None:
        """The mean over the ranks, as DDP would have left it, where `training_step` kept DDP from doing so."""
        if not self._reduces(model):
            return
        import torch
        import torch.distributed as dist
        from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:  # unused in this rank's rows, not in another's
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        for bucket in _take_tensors(gradients, BUCKET):
            flat = _flatten_dense_tensors(bucket).div_(self.ranks.world)
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                gradient.copy_(summed)

    # ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _cut_batches(self, step: int, *, rehearsed: bool = False) -> None:
        """Raises Again with smaller micro-batches, from the last completed step; or OutOfMemoryError when they cannot be smaller."""
        import torch

        live = memory.smaller(self.profile)
        said = next(filter(None, self.ranks.gather(self._exhausted)))
        memory.release()
        if live is None:
            raise torch.OutOfMemoryError(said)
        if not rehearsed:
            self.save_now(step)
        old, new = self.profile.training, live.training
        self._warn(
            step,
            f"out of memory: going on from step {step} with training.micro_batch {old.micro_batch} → {new.micro_batch} and "
            f"training.accumulation {old.accumulation} → {new.accumulation}: the same global batch, in the same order ({said})",
            "nothing to do; training.gradient_checkpointing=true needs less memory too",
            code="memory.batch_cut",
        )
        for key in ("training.micro_batch", "training.accumulation"):
            before, after = steering.setting(self.profile, key), steering.setting(live, key)
            self._enter(step, key, before, after, code="mark.setting")
        raise Again(live, None if rehearsed and step == 0 else step)

    def evaluate_now(self, step: int) -> None:
        try:
            super().evaluate_now(step)
            return
        except Exception as error:
            if not memory.exhausted(error):
                raise
            self._exhausted = str(error)
        self._cut_batches(step)

    # ── a bad batch ───────────────────────────────────────────────────────────────────────────────────────────────

    def _guard(self, norm: Any) -> Any:
        """Hold a bad batch back before it reaches the weights. All ranks see the same loss and the same norm."""
        step = self.state.global_step
        if self.job.skipped and self.job.skipped.issuperset(self.windows.window(step)):
            self._drop_gradients()  # all its rows are skipped: a step that changes nothing
            return norm
        if pause := self._verdict(norm):
            self._hold_back(step, pause)
        else:
            self._recent.append(self._window_loss)
        return norm

    def _verdict(self, norm: Any) -> Pause | None:
        if not math.isfinite(self._window_loss):
            return Pause(code="pause.loss_not_finite", reason="loss not finite")
        if self.accelerator.scaler is None and not math.isfinite(norm):
            return Pause(code="pause.gradient_not_finite", reason="gradient not finite")
        return spike(self._window_loss, self._recent, self.profile.limits.loss_spike)

    def _hold_back(self, step: int, pause: Pause) -> None:
        """Show the batch, pause, and do with it what is chosen."""
        rows = [row for row in self.windows.window(step) if row not in self.job.skipped]
        shown = autopsy(self, rows)
        self.voice.tell(
            BadBatch(
                attempt=self.job.attempt,
                code=pause.code,
                step=step,
                reason=pause.reason,
                rows=shown[:SHOWN],
                total=len(shown),
            )
        )
        self._warn(
            step,
            f"step {step + 1} is held back: {pause.reason}; its update has not been applied",
            "look at its rows; then `cockpit continue RUN --skip` leaves them out, `--rollback` goes back to the checkpoint before "
            "and leaves them out, `cockpit continue RUN` goes on",
            code="training.batch_held",
        )
        self._held_rows = rows
        choice = self._pause(step, pause)
        self._held_rows = []
        if self._stopping:
            self.save_now(step)
            self.outcome = "stopped"
            raise Leave
        if choice == "rollback":
            self._roll_back(step, rows)
        if choice == "skip":
            self.save_now(step)
            self._enter(step, steering.SKIPPED, None, rows, code="mark.skip")
            self.job.skipped.update(rows)
        if choice == "skip" or pause.code != "pause.loss_spike":
            self._drop_gradients()

    def _roll_back(self, step: int, rows: list[int]) -> None:
        """Raises Again from the checkpoint before, with the settings as they stand now."""
        job = self.job
        target = self.ranks.broadcast(self._checkpoint_before(step))
        then, _ = steering.replay(job.run.checkpoint(target) / checkpoints.TRAINER / steering.FILE, job.submitted)
        self._enter(target, "rollback", step, target, code="mark.rollback")
        self._enter(target, steering.SKIPPED, None, rows, code="mark.skip")
        for key in SETTABLE:
            if steering.setting(then, key) != (now := steering.setting(self.profile, key)):
                self._enter(target, key, steering.setting(then, key), now, code="mark.setting")
            job.replayed[key] = now
        job.skipped.update(rows)
        raise Again(self.profile, target)

    def _drop_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def _enter(self, step: int, name: str, old: Any, new: Any, *, code: str) -> None:
        self.voice.tell(Ledger(attempt=self.job.attempt, code=code, step=step, name=name, old=old, new=new))


def recent(losses: Iterable[float] = ()) -> deque[float]:
    """Room for the losses that a spike is measured against."""
    return deque(losses, maxlen=RECENT)
