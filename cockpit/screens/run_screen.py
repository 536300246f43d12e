"""What one can do to a run, for the screens that have one in hand. What ends or removes something asks first."""

from __future__ import annotations

import asyncio

from textual import work

from cockpit.screens.base import CockpitScreen
from cockpit.widgets.confirm import Confirm
from engine.protocol.messages import Command, Reorder, Resume, Run, RunRef, Set, Stop
from engine.protocol.states import ENDED, LIVE, PAUSED

STEERING = frozenset({"pause", "save", "evaluate", "learning_rate", "stop", "delete", "resume"})
"""Actions on a run: without one they are not offered, `--readonly` greys them out."""


class RunScreen(CockpitScreen):
    """A screen with a run in hand and the actions on it; subclasses say which run and on which keys."""

    @property
    def run_in_hand(self) -> Run | None:
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action not in STEERING:
            return True
        if self.app.readonly:
            return None
        return self.is_mounted and self.run_in_hand is not None

    async def _tell(self, operation: str) -> None:
        run = self.run_in_hand
        if run is None:
            return
        taken = await self.app.ask(operation, Command(run=run.id))
        if taken is not None:
            self.notify(f"{operation}: taken at step {taken.step:,}")

    @work(group="command")
    async def action_pause(self) -> None:
        run = self.run_in_hand
        await self._tell("continue" if run and run.state == PAUSED else "pause")

    @work(group="command")
    async def action_save(self) -> None:
        await self._tell("save")

    @work(group="command")
    async def action_evaluate(self) -> None:
        await self._tell("evaluate")

    @work(group="command")
    async def action_learning_rate(self) -> None:
        from cockpit.widgets.prompt import Prompt

        run = self.run_in_hand
        if run is None or run.state not in LIVE:
            self.notify("only a running run has a learning rate to set", severity="warning")
            return
        now = run.metrics.get("train/learning_rate")
        written = f"now {now:.3g}; " if now is not None else ""
        text = f"{written}the schedule's new base from the next step on, its shape goes on"
        answer = await self.app.push_screen_wait(Prompt("Learning rate", text))
        if not answer:
            return
        try:
            rate = float(answer)
        except ValueError:
            rate = -1.0
        if not 0 < rate < 1:
            self.notify(f"{answer} is no learning rate: write a number above 0, like 2e-4", severity="error")
            return
        taken = await self.app.ask("set", Set(run=run.id, changes={"training.learning_rate": rate}))
        if taken is not None:
            self.notify(f"learning rate {rate:g} from step {taken.step + 1:,} on")

    @work(group="command")
    async def action_stop(self) -> None:
        run = self.run_in_hand
        if run is None or run.state not in LIVE:
            self.notify("nothing to stop: this run has ended" if run else "no run", severity="warning")
            return
        choices = {"y": "stop after this step and save a checkpoint", "k": "kill it now, without saving"}
        text = f"{run.name or run.id} is {run.state} at step {run.step:,}. It can be resumed later."
        answer = await self.app.push_screen_wait(Confirm(f"Stop {run.id}?", text, choices))
        if answer is not None:
            await self.app.ask("stop", Stop(run=run.id, now=answer == "k"), timeout=600.0)

    @work(group="command")
    async def action_delete(self) -> None:
        run = self.run_in_hand
        if run is None:
            return
        if run.state not in ENDED:
            self.notify("stop it before you delete it", severity="warning")
            return
        text = f"This removes {run.directory} with its checkpoints, for good."
        if await self.app.push_screen_wait(Confirm(f"Delete {run.id}?", text, {"y": "delete it"})):
            await self.app.ask("delete", RunRef(run=run.id))

    @work(group="command")
    async def action_resume(self) -> None:
        from cockpit.submit import resumption

        run = self.run_in_hand
        if run is None:
            return
        passed = await asyncio.to_thread(resumption, run.directory)
        if await self.app.ask("resume", Resume(run=run.id, environment=passed)) is not None:
            self.notify(f"{run.id} is queued again")

    @work(group="command")
    async def action_queue(self, by: int) -> None:
        """Move a queued run that many places later (negative: earlier)."""
        run = self.run_in_hand
        if run is None or not run.position:
            self.notify("only a queued run has a place in the queue", severity="warning")
        elif moved := await self.app.ask("reorder", Reorder(run=run.id, position=max(1, run.position + by))):
            self.notify(f"{run.id} is now number {moved.position}")
