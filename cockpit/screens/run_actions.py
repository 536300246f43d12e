"""What one can do to a run, for the screens that have one in hand. What ends or removes something asks first."""

from __future__ import annotations

import asyncio

from textual import work

from cockpit.screens.base import CockpitScreen
from cockpit.state.app_state import RunTold
from cockpit.state.run_history import settings, written
from cockpit.widgets.confirm import Confirm
from engine.protocol.messages import Command, Continue, Message, Reorder, Resume, Run, RunRef, Set, Stop, Taken
from engine.protocol.states import ENDED, LIVE, PAUSED, PREPARING, QUEUED, RUNNING

STEERING = frozenset({"pause", "save", "evaluate", "adjust", "learning_rate", "stop", "delete", "resume", "export"})
"""Actions on a run: without one they are not offered, `--readonly` greys them out."""
STEERABLE = (RUNNING, PAUSED)
BOUNDARY = 600.0
"""Seconds that a command may wait for a step to end: evaluations and first steps of large models are long."""
WHILE = 2.0
"""Seconds after which a command that waits says that it does."""


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
        message = Continue(run=run.id) if operation == "continue" else Command(run=run.id)
        taken = await self._steer(operation, message)
        if taken is not None:
            self.notify(f"{operation}: taken at step {taken.step:,}")

    async def _steer(self, operation: str, message: Message) -> Taken | None:
        """Have a command taken at the next step boundary; when that takes a while, say so."""
        waiting = self.set_timer(WHILE, lambda: self.notify(f"{operation}: waits for the present step to end"))
        taken: Taken | None = await self.app.ask(operation, message, timeout=BOUNDARY)
        waiting.stop()
        return taken

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

    def action_evaluations(self) -> None:
        """Its evaluations: metrics over the steps, replies with their scores, comparisons."""
        from cockpit.screens.evaluations import EvaluationsScreen

        run = self.run_in_hand
        if run is not None and len(self.app.screen_stack) == 1:
            self.app.push_screen(EvaluationsScreen(run.id))

    @work(group="command")
    async def action_export(self) -> None:
        """Its best checkpoint as a folder for others."""
        from cockpit.widgets.export_dialog import Exporting
        from cockpit.widgets.prompt import Prompt

        run = self.run_in_hand
        if run is None or run.state in (QUEUED, PREPARING):
            self.notify("nothing to export: it has no checkpoint yet" if run else "no run", severity="warning")
            return
        text = "The best checkpoint as a folder that others load, merged and compared with it. The folder:"
        out = await self.app.push_screen_wait(Prompt(f"Export {run.id}", text, f"{run.id}-export"))
        if out:
            self.app.push_screen(Exporting(run.id, out))

    @work(group="command")
    async def action_learning_rate(self) -> None:
        await self._change("training.learning_rate")

    @work(group="command")
    async def action_adjust(self) -> None:
        """Choose among the settings that may change while the run is running, then change that one."""
        from cockpit.state.run_settings import TITLES
        from cockpit.widgets.picker import Choice, Picker

        run = self.run_in_hand
        if run is None or run.state not in STEERABLE:
            self.notify("only a run that is running or paused can be changed", severity="warning")
            return
        now = settings(run, self.app.state.told.get(run.id, RunTold()))
        choices = [
            Choice(key, f"{title}, now {written(now[key])}" if key in now else title) for key, title in TITLES.items()
        ]
        chosen = await self.app.push_screen_wait(Picker(f"Change {run.id}", "type to narrow", choices))
        if chosen in TITLES:
            await self._change(chosen)

    async def _change(self, key: str) -> None:
        """Ask for a setting's new value until it can be one, then have it set."""
        from cockpit.state.run_settings import TITLES, meaning, value_of
        from cockpit.widgets.prompt import Prompt

        run = self.run_in_hand
        if run is None or run.state not in STEERABLE:
            self.notify(f"only a run that is running or paused has a {TITLES[key].lower()} to set", severity="warning")
            return
        now = settings(run, self.app.state.told.get(run.id, RunTold()))
        before = f"now {written(now[key])}; " if key in now else ""
        typed, wrong = "", ""
        while True:
            answer = await self.app.push_screen_wait(Prompt(TITLES[key], f"{wrong}{before}{meaning(key)}", typed))
            if not answer:
                return
            typed = answer
            try:
                value = value_of(key, answer, run.step)
                break
            except ValueError as error:
                wrong = f"✗ {error}\n"
        taken = await self._steer("set", Set(run=run.id, changes={key: value}))
        if taken is not None:
            change = f"{written(now[key])} → {written(value)}" if key in now else written(value)
            self.notify(f"{change} from step {taken.step + 1:,} on", title=TITLES[key])

    @work(group="command")
    async def action_bad_batch(self) -> None:
        """The rows of a batch that is held back, and what becomes of them."""
        from cockpit.widgets.bad_batch_dialog import BadBatch

        run = self.run_in_hand
        if run is None:
            return
        choice = await self.app.push_screen_wait(BadBatch(run.id))
        if choice is not None:
            taken = await self._steer("continue", Continue(run=run.id, choice="" if choice == "continue" else choice))
            if taken is not None:
                self.notify(f"{choice}: taken at step {taken.step:,}")

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
            await self.app.ask("stop", Stop(run=run.id, now=answer == "k"), timeout=BOUNDARY)

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
        from cockpit.connection.submission import resumption

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
