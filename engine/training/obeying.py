"""What a run obeys at a step boundary: commands, changed settings, and trouble that asks for a pause."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from engine.protocol.journal import Ledger
from engine.protocol.messages import Problem
from engine.protocol.profile import Profile
from engine.training import steering
from engine.training.job import Job
from engine.training.ranks import Ranks
from engine.training.voice import Voice

DISK_CHECK = 5.0
"""Seconds between looks at the free disk space."""
PAUSE_TURN = 1.0
"""Seconds between two agreements of ranks that are paused: far below any collective's time-out."""

if TYPE_CHECKING:
    from transformers import Trainer as Library
else:
    Library = object  # the trainer proper stands behind this mixin in the method's class


class Obeying(Library):
    """Mixin of `Steered`. Every rank passes every method here at the same step, with the same arguments."""

    job: Job
    ranks: Ranks
    voice: Voice
    profile: Profile
    """The run's settings as they stand now."""
    optimizer: Any
    lr_scheduler: Any
    _trouble = ""
    """Why this step asks for a pause."""
    _stopping = False
    _disk_looked = 0.0

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
