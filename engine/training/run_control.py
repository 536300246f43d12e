"""Control of a run at its step boundaries: commands, changed settings, and pauses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.protocol.codes import Pause
from engine.protocol.journal import Ledger
from engine.protocol.messages import Problem
from engine.training import live_settings
from engine.training.host import HostMonitor

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

PAUSE_POLL_SECONDS = 1.0
"""Seconds between two agreements of paused ranks: far below the time-out of a collective."""
USER_PAUSE = Pause(code="pause.asked", reason="asked")

Command = tuple[str, dict[str, Any]]
"""A command's name and arguments."""


class RunControl:
    """Every rank calls every method here at the same step, with the same arguments."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop, self._ranks, self._reporter = loop, loop.ranks, loop.reporter
        self._inbox, self._hot_chat = loop.job.inbox, loop.job.hot_chat
        self._host = HostMonitor(loop.job.run.path, loop.job.inbox.pids, loop.reporter.warn)
        self.stopping = False
        self.held_rows: Sequence[int] = ()
        """Rows of the batch that is held back; empty otherwise."""

    def take_commands(self) -> None:
        """Carry out waiting commands on all ranks; returns when the run may continue."""
        if pause := self._agree_on_commands():
            self.pause(pause)
            self._loop.checkpointer.retry()
        if not self.stopping:
            self._answer_questions()

    def pause(self, pause: Pause) -> str:
        """Wait at this boundary for a command that ends the pause, or for the host to recover; returns the command's
        choice."""
        self._write_ledger("pause", None, pause.reason, code=pause.code)
        with self._reporter.in_phase("paused", pause.reason):
            choice = self._wait(pause)
        self._write_ledger("continue", pause.reason, choice or None, code="mark.continue")
        return choice

    def _answer_questions(self) -> bool:
        """Let rank 0 answer questions with the weights of this step; False when there are none."""
        loop = self._loop
        busy = self._hot_chat.busy
        if loop.strategy.sharded:
            busy = bool(self._ranks.sum([busy])[0])
        if not busy or not (loop.strategy.sharded or self._ranks.first):
            return False
        with loop.averaged_weights(), loop.strategy.in_step():
            return self._hot_chat.advance(loop)

    def _wait(self, pause: Pause) -> str:
        """Carry out commands until one of them, or the host's recovery, ends the pause; returns the command's
        choice."""
        commands: list[Command] = []
        over = False
        while not over and not self.stopping:
            if self._ranks.sum([self._inbox.terminated])[0]:
                self._obey_sigterm()
                break
            answered = self._answer_questions()
            if self._ranks.first:
                self._loop.checkpointer.poll()
                if not answered:
                    self._inbox.arrived.wait(PAUSE_POLL_SECONDS)
                over = pause.passes and self._host_recovered()
            over, commands = self._exchange_commands(over)
            over = over or any(name == "continue" for name, _ in commands)
        choices = (arguments.get("choice") for name, arguments in commands if name == "continue")
        return next(filter(None, choices), "")

    def save(self, *, background: bool = False) -> None:
        """Save a checkpoint of this step, unless there is one; a full disk pauses the run until there is room. With
        `background`, a large one is written while training goes on."""
        loop = self._loop
        while pause := loop.checkpointer.save(background=background):
            self.pause(pause)
            if self.stopping:
                self._reporter.warn(
                    code="training.no_checkpoint",
                    step=loop.step,
                    message=f"stopped without a checkpoint of step {loop.step}: {pause.reason}",
                    hint="free disk space, then `cockpit resume` continues from the checkpoint before it",
                )
                return

    # ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _agree_on_commands(self) -> Pause | None:
        """Exchange and carry out commands on all ranks; returns the reason to pause, if any."""
        host_pause = self._find_host_pause()
        waiting = len(self._inbox) + bool(host_pause) if self._ranks.first else 0
        waiting_anywhere, terminated = self._ranks.sum([waiting, self._inbox.terminated])
        if terminated:
            self._obey_sigterm()
        if self.stopping or not waiting_anywhere:
            return None
        pause: Pause | None
        pause, commands = self._exchange_commands(host_pause)
        for name, _ in commands:
            pause = {"pause": USER_PAUSE, "continue": None, "stop": None}.get(name, pause)
        return pause

    def _obey_sigterm(self) -> None:
        """Some rank got SIGTERM: all of them end here, with a checkpoint."""
        self.stopping = True
        self._reporter.warn(
            code="training.terminated",
            step=self._loop.step,
            message=f"SIGTERM: the run ends at step {self._loop.step}, with a checkpoint",
            hint="a scheduler's time limit, a reboot, or `kill`; `cockpit resume` continues from this step",
        )

    def _exchange_commands(self, payload: Any) -> tuple[Any, list[Command]]:
        """Send rank 0's `payload` and its waiting commands to all ranks, which carry the commands out; returns the
        payload and the accepted commands."""
        instructions = self._inbox.take_all() if self._ranks.first else []
        payload, commands = self._ranks.broadcast((payload, [(each.name, each.arguments) for each in instructions]))
        accepted = []
        for index, (name, arguments) in enumerate(commands):
            if name == "generate":  # for rank 0 alone, and answered when the reply is complete
                for instruction in instructions[index : index + 1]:
                    self._hot_chat.add(instruction)
                continue
            refusal = self._execute(name, arguments)
            if not refusal:
                accepted.append((name, arguments))
            if instructions:
                self._reporter.link.answer(instructions[index], step=self._loop.step, problem=refusal)
        return payload, accepted

    def _execute(self, name: str, arguments: dict[str, Any]) -> Problem | None:
        """Carry out one command; returns the reason for refusing it, or None."""
        match name:
            case "stop":
                self.stopping = True
            case "save":
                self.save()
            case "evaluate":
                self._loop.guard.evaluate()
            case "set":
                return self._change_settings(arguments.get("changes", arguments))
            case "trace":
                return self._loop.trace.start(int(arguments.get("steps", 1)))
            case "continue":
                return self._check_choice(arguments.get("choice", ""))
            case "pause":
                pass
            case _:
                return Problem(code="request.unknown", title=f"a training worker does not know the command {name!r}")
        return None

    def _check_choice(self, choice: str) -> Problem | None:
        """The reason for refusing this choice for a batch that is held back, or None."""
        step = self._loop.step
        if not choice:
            return None
        if choice not in ("skip", "rollback"):
            return Problem(code="command.no_choice", title=f"there is no choice {choice!r}: skip or rollback")
        if not self.held_rows:
            title = f"no batch is held back at step {step}, so there is nothing to {choice}"
            return Problem(code="command.nothing_held", title=title)
        if choice == "rollback" and self._ranks.broadcast(self._loop.checkpointer.newest_before(step)) is None:
            title = f"there is no checkpoint before step {step}: skip the rows instead"
            return Problem(code="command.no_way_back", title=title)
        return None

    def _change_settings(self, changes: dict[str, Any]) -> Problem | None:
        """Change settings; returns the reason for refusing, or None."""
        loop, live = self._loop, self._loop.profile
        try:
            for key, value in changes.items():
                if key == "training.max_steps" and value is None:
                    raise ValueError(
                        f"training.max_steps needs a number while a run is running, not null: training.epochs would be "
                        f"{self._count_steps()} steps"
                    )
                live = live_settings.change_setting(live, key, value)
            if live.training.max_steps is not None and live.training.max_steps < loop.step:
                raise ValueError(f"step {loop.step} is done already; training.max_steps must be at least that")
        except ValueError as error:
            return Problem(code="setting.refused", title=str(error))
        self.save()  # so that the run can be resumed from before the change
        for key in changes:
            old, new = live_settings.get_setting(loop.profile, key), live_settings.get_setting(live, key)
            if key == "training.max_steps":
                old = loop.max_steps
            self._write_ledger(key, old, new, code="mark.setting")
        loop.apply_settings(live)
        return None

    def _count_steps(self) -> int:
        """The steps of the profile's epochs."""
        return math.ceil(self._loop.profile.training.epochs * self._loop.batches.per_epoch)

    def _write_ledger(self, name: str, old: Any, new: Any, *, code: str) -> None:
        """Journal a change at this step."""
        attempt, step = self._loop.job.attempt, self._loop.step
        self._reporter.write(Ledger(attempt=attempt, code=code, step=step, name=name, old=old, new=new))

    # ── the host ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _find_host_pause(self) -> Pause | None:
        """A pause that the disk or the host requires. Checked by rank 0, every few seconds."""
        if not self._ranks.first:
            return None
        if failed := self._loop.checkpointer.poll():
            return failed
        if self._reporter.blocked and not self._reporter.flush():
            return self._reporter.blocked
        return self._host.find_exceeded_limit(self._loop.profile.limits) if self._host.is_due() else None

    def _host_recovered(self) -> bool:
        return (
            self._host.is_due()
            and self._reporter.flush()
            and not self._host.find_exceeded_limit(self._loop.profile.limits)
        )
