"""What a run obeys at a step boundary: commands, changed settings, and trouble that asks for a pause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.protocol.codes import Pause
from engine.protocol.journal import Ledger
from engine.protocol.messages import Problem
from engine.protocol.profile import Profile
from engine.training import optimizers, steering
from engine.training.host import Host
from engine.training.job import Job
from engine.training.ranks import Ranks
from engine.training.shares import Shares
from engine.training.voice import Voice

PAUSE_TURN = 1.0
"""Seconds between two agreements of ranks that are paused: far below any collective's time-out."""

ASKED = Pause(code="pause.asked", reason="asked")

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
    shares: Shares | None = None
    """Who keeps the optimiser's states of which weights, where ranks share them."""
    _resumed: Path | None = None
    """The `trainer/` folder of the checkpoint that this attempt goes on from."""
    _stopping = False
    _held_rows: Sequence[int] = ()
    """Rows of the step that is held back, while it is."""
    _host: Host

    def _obey(self, step: int) -> None:
        """Take what has come, on all ranks alike; return when the run may go on."""
        if pause := self._meet(step):
            self._pause(step, pause)
        if not self._stopping:
            self.job.hot.go_on(self, step)

    def _meet(self, step: int) -> Pause | None:
        """One agreement: commands are carried out, and why to pause is returned."""
        trouble = self._host_trouble()
        waiting = len(self.job.inbox) + bool(trouble) if self.ranks.first else 0
        if not self.ranks.sum([waiting])[0]:
            return None
        pause: Pause | None
        pause, orders = self._take_orders(step, trouble)
        for name, _ in orders:
            pause = {"pause": ASKED, "continue": None, "stop": None}.get(name, pause)
        return pause

    def _carry_out(self, name: str, arguments: dict[str, Any], step: int) -> Problem | None:
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
            case "continue":
                return self._choice_refused(arguments.get("choice", ""), step)
            case "pause":
                pass
            case _:
                return Problem(code="request.unknown", title=f"a training worker does not know the command {name!r}")
        return None

    def _choice_refused(self, choice: str, step: int) -> Problem | None:
        if not choice:
            return None
        if choice not in ("skip", "rollback"):
            return Problem(code="command.no_choice", title=f"there is no choice {choice!r}: skip or rollback")
        if not self._held_rows:
            title = f"no batch is held back at step {step}: there is nothing to {choice}"
            return Problem(code="command.nothing_held", title=title)
        if choice == "rollback" and self.ranks.broadcast(self._checkpoint_before(step)) is None:
            title = f"there is no checkpoint before step {step}: skip the rows instead"
            return Problem(code="command.no_way_back", title=title)
        return None

    def _checkpoint_before(self, step: int) -> int | None:
        """The newest checkpoint before this step, by rank 0, which alone keeps the list."""
        return max((each for each in self.job.checkpoints if each < step), default=None)

    def _set(self, changes: dict[str, Any], step: int) -> Problem | None:
        live = self.profile
        try:
            for key, value in changes.items():
                live = steering.changed(live, key, value)
            if live.training.max_steps is not None and live.training.max_steps < step:
                raise ValueError(f"step {step} is done already; training.max_steps must be at least that")
        except ValueError as error:
            return Problem(code="setting.refused", title=str(error))
        self.save_now(step)  # so that there is a way back to before the change
        for key in changes:
            old, new = steering.setting(self.profile, key), steering.setting(live, key)
            if key == "training.max_steps":
                old = self.state.max_steps
            self.voice.tell(
                Ledger(attempt=self.job.attempt, code="mark.setting", step=step, name=key, old=old, new=new)
            )
        self.adopt(live)
        return None

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
        self.optimizer.defaults["lr"] = base  # what the polynomial's shape is relative to
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

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            decayed = self.get_decay_parameter_names(self.model)
            self.optimizer = optimizers.make(self.profile.training, self.model, decayed)
        made = super().create_optimizer(model)
        if self.profile.launch.strategy == "zero2" and self.ranks.world > 1:
            self.shares = Shares(made, self.ranks)
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        warmup = self.args.get_warmup_steps(num_training_steps)
        self.args.lr_scheduler_kwargs = optimizers.shape(self.profile.training, num_training_steps, warmup)
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shares and checkpoint is not None:
            import torch

            # The library would put all states on every device first.
            self.shares.load(Path(checkpoint, "optimizer.pt"))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, "scheduler.pt"), weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._resumed = Path(checkpoint)
            # The file holds the base of its time; the profile, with what was changed since, says the present one.
            self._reschedule(self.profile.training.learning_rate)

    def _host_trouble(self) -> Pause | None:
        """Why disk or host ask for a pause; looked at every few seconds by rank 0."""
        if not self.ranks.first:
            return None
        if self.voice.trouble and not self.voice.flush():
            return self.voice.trouble
        return self._host.trouble(self.profile.limits) if self._host.due() else None

    def _passed(self) -> bool:
        """Whether a trouble of disk or host is over."""
        return self._host.due() and self.voice.flush() and not self._host.trouble(self.profile.limits)

    def _pause(self, step: int, pause: Pause) -> str:
        """Wait at this boundary until told to go on, or until the host is as it should be; returns the choice that came with it."""
        before = self.voice.phase_name
        self.voice.tell(Ledger(attempt=self.job.attempt, code=pause.code, step=step, name="pause", new=pause.reason))
        self.voice.phase("paused", pause.reason)
        orders: list[tuple[str, dict[str, Any]]] = []
        over = False
        while not over and not self._stopping:
            if self.ranks.first:
                if not self.job.hot.go_on(self, step):
                    self.job.inbox.arrived.wait(PAUSE_TURN)
                over = pause.passes and self._passed()
            over, orders = self._take_orders(step, over)
            over = over or any(name == "continue" for name, _ in orders)
        choice = next((given["choice"] for name, given in orders if name == "continue" and given.get("choice")), "")
        self.voice.tell(
            Ledger(
                attempt=self.job.attempt,
                code="mark.continue",
                step=step,
                name="continue",
                old=pause.reason,
                new=choice or None,
            )
        )
        self.voice.phase(before)
        return choice

    def _take_orders(self, step: int, word: Any) -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
        """Rank 0's `word` and the waiting commands go to all ranks, which carry them out; returns the word and those not refused."""
        instructions = self.job.inbox.take() if self.ranks.first else []
        word, orders = self.ranks.broadcast((word, [(each.name, each.arguments) for each in instructions]))
        taken = []
        for index, (name, arguments) in enumerate(orders):
            if name == "generate":  # rank 0's alone, and answered when the reply is whole
                for instruction in instructions[index : index + 1]:
                    self.job.hot.take(instruction)
                continue
            refusal = self._carry_out(name, arguments, step)
            if not refusal:
                taken.append((name, arguments))
            if instructions:
                self.voice.link.answer(instructions[index], step=step, problem=refusal)
        return word, taken
