"""Actions on several runs at once, for the screen on which runs can be chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from textual import work
from textual.worker import Worker

from cockpit.language.translate import tr
from cockpit.screens.base import opens_dialog
from cockpit.screens.run_actions import BOUNDARY, OFFERED
from cockpit.screens.run_keeping import RunKeepingScreen
from cockpit.state.formatting import counted
from cockpit.widgets.confirm import Confirm
from engine.protocol.messages import Command, Continue, Resume, Run, RunRef, Stop

BATCHED = ("pause", "continue", "stop", "resume", "delete", "tags", "pin", "group", "priority")
"""Actions that concern all chosen runs; all others concern the run under the cursor."""
NAMED = 8
"""Runs that a question names; of further ones it says how many."""


class RunBatchScreen(RunKeepingScreen):
    """Without chosen runs, every action is about the current one."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: set[str] = set()

    @property
    def targets(self) -> Sequence[Run]:
        runs = self.app.state.runs
        chosen = [runs[run] for run in sorted(self.chosen) if run in runs]
        return chosen or super().targets

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("choose", "choose_all"):
            return self.is_mounted and self.current_run is not None
        if action in BATCHED and self.is_mounted and self.chosen and not self.app.readonly:
            return bool(self._fitting(action))
        return super().check_action(action, parameters)

    def _fitting(self, action: str) -> list[Run]:
        """The chosen runs in whose state the action has an effect."""
        wanted: Collection[str] = OFFERED[action]
        return [run for run in self.targets if run.state in wanted]

    def action_pause(self) -> Worker[None]:
        return self._command("pause") if self.chosen else super().action_pause()

    def action_continue(self) -> Worker[None]:
        return self._command("continue") if self.chosen else super().action_continue()

    @work(group="command")
    async def _command(self, operation: str) -> None:
        runs = self._fitting(operation)
        messages = [Continue(run=run.id) if operation == "continue" else Command(run=run.id) for run in runs]
        await asyncio.gather(*(self.app.ask(operation, message, timeout=BOUNDARY) for message in messages))

    def action_stop(self) -> Worker[None]:
        return self._stop_chosen() if self.chosen else super().action_stop()

    @opens_dialog
    @work(group="command")
    async def _stop_chosen(self) -> None:
        runs = self._fitting("stop")
        choices = {"y": tr("stop each after its step, with a checkpoint"), "k": tr("end them at once, without saving")}
        answer = await self._confirm_all("Stop", runs, tr("They can be resumed later."), choices)
        if answer is not None:
            messages = [Stop(run=run.id, now=answer == "k") for run in runs]
            await asyncio.gather(*(self.app.ask("stop", message, timeout=BOUNDARY) for message in messages))

    def action_delete(self) -> Worker[None]:
        return self._delete_chosen() if self.chosen else super().action_delete()

    @opens_dialog
    @work(group="command")
    async def _delete_chosen(self) -> None:
        runs = self._fitting("delete")
        text = tr("This deletes their directories and checkpoints permanently.")
        if await self._confirm_all("Delete", runs, text, {"y": "delete them"}) is None:
            return
        for run in runs:
            if await self.app.ask("delete", RunRef(run=run.id)) is None:
                return
            self.chosen.discard(run.id)

    def action_resume(self) -> Worker[None]:
        return self._resume_chosen() if self.chosen else super().action_resume()

    @opens_dialog
    @work(group="command")
    async def _resume_chosen(self) -> None:
        runs = self._fitting("resume")
        text = tr("Each goes on from its newest checkpoint, one after the other.")
        if await self._confirm_all("Resume", runs, text, {"y": "resume them"}) is None:
            return
        for run in runs:
            if not await self._queue_again(run, Resume(run=run.id)):
                return

    async def _confirm_all(self, verb: str, runs: Sequence[Run], text: str, choices: dict[str, str]) -> str | None:
        names = [f"  {run.id}  {run.state}" for run in runs[:NAMED]]
        names += [tr("  and {runs} more", runs=len(runs) - NAMED)] if len(runs) > NAMED else []
        left = len(self.chosen) - len(runs)
        names += (
            [tr("Not {others} of the chosen: it is not possible in their state.", others=counted(left, "other"))]
            if left > 0
            else []
        )
        question = f"{verb} {counted(len(runs), 'run')}?"
        return await self.app.push_screen_wait(Confirm(question, "\n".join([text, *names]), choices))
