"""Actions on a run, for the screens that show or list runs. Actions that end or delete something ask first."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from textual import work

from cockpit.language.translate import tr, tr_engine
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.state.app_state import RunHistory
from cockpit.state.run_history import current_settings, format_value
from cockpit.widgets.confirm import Confirm
from engine.protocol.messages import (
    Command,
    Continue,
    Message,
    ProblemError,
    Reorder,
    Resume,
    Run,
    RunRef,
    Set,
    Stop,
    Taken,
)
from engine.protocol.states import COMPLETED, ENDED, LIVE, PAUSED, PREPARING, QUEUED, RUNNING, STATES, STOPPING

STEERABLE = (RUNNING, PAUSED)
OFFERED: dict[str, Collection[str]] = {
    "pause": (RUNNING,),
    "continue": (PAUSED,),
    "save": STEERABLE,
    "evaluate": STEERABLE,
    "adjust": STEERABLE,
    "learning_rate": STEERABLE,
    "stop": [state for state in LIVE if state != STOPPING],
    "resume": [state for state in ENDED if state != COMPLETED],
    "delete": ENDED,
    "export": [state for state in STATES if state not in (QUEUED, PREPARING)],
    "extend": ENDED,
    "from_step": ENDED,
    "tags": STATES,
    "note": STATES,
    "pin": STATES,
    "group": STATES,
    "priority": (QUEUED,),
}
"""Action -> the states of a run in which it has an effect. In others, and with `--readonly`, it is not offered."""
BOUNDARY = 600.0
"""Seconds that a command may wait for a step to end: evaluations and first steps of large models are long."""
NOTICE_DELAY = 2.0
"""Seconds after which the user is told that a command is still waiting."""


class RunActionsScreen(CockpitScreen):
    """A screen with a current run. Subclasses give the run and the keys of the actions."""

    @property
    def current_run(self) -> Run | None:
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "clean":
            return not self.app.readonly
        if action not in OFFERED:
            return True
        run = self.current_run if self.is_mounted and not self.app.readonly else None
        return run is not None and run.state in OFFERED[action]

    async def _send(self, operation: str) -> None:
        run = self.current_run
        if run is None:
            return
        message = Continue(run=run.id) if operation == "continue" else Command(run=run.id)
        taken = await self._steer(operation, message)
        if taken is not None:
            self.notify(tr("{operation}: taken at step {step:,}", operation=operation, step=taken.step))

    async def _steer(self, operation: str, message: Message) -> Taken | None:
        """Send a command, which the run takes at its next step boundary. It is shown until then; on a screen that
        lists runs, a notification tells of it when that takes long."""
        waits = (getattr(message, "run", ""), operation)
        self.app.waiting.append(waits)
        self.app.publish(self.app.state)
        told = self.set_timer(
            NOTICE_DELAY, lambda: self.notify(tr("{operation}: waits for the current step to end", operation=operation))
        )
        try:
            taken: Taken | None = await self.app.ask(operation, message, timeout=BOUNDARY)
        finally:
            told.stop()
            self.app.waiting.remove(waits)
            self.app.publish(self.app.state)
        return taken

    @work(group="command")
    async def action_pause(self) -> None:
        await self._send("pause")

    @work(group="command")
    async def action_continue(self) -> None:
        await self._send("continue")

    @work(group="command")
    async def action_save(self) -> None:
        await self._send("save")

    @work(group="command")
    async def action_evaluate(self) -> None:
        await self._send("evaluate")

    def action_evaluations(self) -> None:
        """Open the run's evaluations."""
        from cockpit.screens.evaluations import EvaluationsScreen

        run = self.current_run
        if run is not None and len(self.app.screen_stack) == 1:
            self.app.push_screen(EvaluationsScreen(run.id))

    def action_metrics(self) -> None:
        """Open the panels of all metrics of the run, or of the marked runs."""
        from cockpit.screens.metrics import MetricsScreen

        runs = self.list_compared()
        if runs and len(self.app.screen_stack) == 1:
            self.app.push_screen(MetricsScreen(runs))

    def list_compared(self) -> list[str]:
        """The runs that are looked at together: the current one alone, unless some are marked."""
        return [self.current_run.id] if self.current_run is not None else []

    def action_worst(self) -> None:
        """Open the training rows that the run learnt worst."""
        from cockpit.screens.worst_rows import WorstRowsScreen

        run = self.current_run
        if run is not None and len(self.app.screen_stack) == 1:
            self.app.push_screen(WorstRowsScreen(run.id))

    @opens_dialog
    @work(group="command")
    async def action_export(self) -> None:
        """Export the run's best checkpoint as a folder for other programs."""
        from cockpit.widgets.export_dialog import ExportDialog
        from cockpit.widgets.prompt import Prompt

        run = self.current_run
        if run is None or run.state in (QUEUED, PREPARING):
            self.notify(tr("nothing to export: it has no checkpoint yet") if run else tr("no run"), severity="warning")
            return
        text = tr("Export the best checkpoint, merged, as a folder that other programs load. The folder:")
        out = await self.app.push_screen_wait(Prompt(tr("Export {id}", id=run.id), text, f"{run.id}-export"))
        if out:
            self.app.push_screen(ExportDialog(run.id, out))

    @opens_dialog
    @work(group="command")
    async def action_learning_rate(self) -> None:
        await self._change("training.learning_rate")

    @opens_dialog
    @work(group="command")
    async def action_adjust(self) -> None:
        """Pick a setting that can be changed during a run, and change it."""
        from cockpit.state.run_settings import TITLES
        from cockpit.widgets.picker import Choice, Picker

        run = self.current_run
        if run is None or run.state not in STEERABLE:
            self.notify(tr("only a run that is running or paused can be changed"), severity="warning")
            return
        now = current_settings(run, self.app.state.histories.get(run.id, RunHistory()))
        choices = [
            Choice(key, tr("{title}, now {now}", title=title, now=format_value(now[key])) if key in now else title)
            for key, title in TITLES.items()
        ]
        chosen = await self.app.push_screen_wait(Picker(tr("Change {id}", id=run.id), tr("type to filter"), choices))
        if chosen in TITLES:
            await self._change(chosen)

    async def _change(self, key: str) -> None:
        """Ask for a setting's new value until it is valid, then set it."""
        from cockpit.state.run_settings import TITLES, describe_setting, parse_value
        from cockpit.widgets.prompt import Prompt

        run = self.current_run
        if run is None or run.state not in STEERABLE:
            self.notify(
                tr("only a run that is running or paused has a {TITLES} to set", TITLES=tr(TITLES[key]).lower()),
                severity="warning",
            )
            return
        now = current_settings(run, self.app.state.histories.get(run.id, RunHistory()))
        before = tr("now {now}; ", now=format_value(now[key])) if key in now else ""
        text, problem = "", ""
        while True:
            answer = await self.app.push_screen_wait(
                Prompt(tr(TITLES[key]), f"{problem}{before}{describe_setting(key)}", text)
            )
            if not answer:
                return
            text = answer
            try:
                value = parse_value(key, answer, run.step)
                break
            except ValueError as error:
                problem = f"✗ {error}\n"
        taken = await self._steer("set", Set(run=run.id, changes={key: value}))
        if taken is not None:
            change = f"{format_value(now[key])} → {format_value(value)}" if key in now else format_value(value)
            self.notify(tr("{change} from step {step:,} on", change=change, step=taken.step + 1), title=tr(TITLES[key]))

    @opens_dialog
    @work(group="command")
    async def action_bad_batch(self) -> None:
        """Show the batch that is held back, and send the user's choice."""
        from cockpit.widgets.bad_batch_dialog import BadBatchDialog

        run = self.current_run
        if run is None:
            return
        choice = await self.app.push_screen_wait(BadBatchDialog(run.id))
        if choice is not None:
            taken = await self._steer("continue", Continue(run=run.id, choice="" if choice == "continue" else choice))
            if taken is not None:
                self.notify(tr("{choice}: taken at step {step:,}", choice=choice, step=taken.step))

    @opens_dialog
    @work(group="command")
    async def action_stop(self) -> None:
        run = self.current_run
        if run is None or run.state not in LIVE:
            self.notify(tr("nothing to stop: this run has ended") if run else tr("no run"), severity="warning")
            return
        text = tr(
            "{name} is {state} at step {step:,}. It can be resumed later.",
            name=run.name or run.id,
            state=run.state,
            step=run.step,
        )
        choices = {"y": tr("stop after this step and save a checkpoint"), "k": tr("end it at once, without saving")}
        if run.state in (QUEUED, PREPARING):
            text = tr(
                "{name} is {state}: it has no step yet. It can be resumed later.",
                name=run.name or run.id,
                state=run.state,
            )
            choices = {"y": tr("take it out of the queue") if run.state == QUEUED else tr("end it")}
        answer = await self.app.push_screen_wait(Confirm(tr("Stop {id}?", id=run.id), text, choices))
        if answer is not None:
            await self.app.ask("stop", Stop(run=run.id, now=answer == "k"), timeout=BOUNDARY)

    @opens_dialog
    @work(group="command")
    async def action_delete(self) -> None:
        run = self.current_run
        if run is None:
            return
        if run.state not in ENDED:
            self.notify(tr("stop it before you delete it"), severity="warning")
            return
        text = tr("This deletes {directory} and its checkpoints permanently.", directory=run.directory)
        if await self.app.push_screen_wait(Confirm(tr("Delete {id}?", id=run.id), text, {"y": tr("delete it")})):
            await self.app.ask("delete", RunRef(run=run.id))

    @opens_dialog
    @work(group="command")
    async def action_resume(self) -> None:
        run = self.current_run
        if run is None:
            return
        ended = tr(
            "{state} at step {step:,} of {max_steps:,}{reason}",
            state=run.state,
            step=run.step,
            max_steps=run.max_steps,
            reason=f": {tr_engine(run.reason)}" if run.reason else "",
        )
        text = tr("{name} is {ended}. It goes on from its newest checkpoint.", name=run.name or run.id, ended=ended)
        if not await self.app.push_screen_wait(Confirm(tr("Resume {id}?", id=run.id), text, {"y": tr("resume it")})):
            return
        try:
            environment = await asyncio.to_thread(self.app.engine.resume_environment, run.directory)
        except ProblemError as error:
            self.app.notify_problem(error.problem)
            return
        if await self.app.ask("resume", Resume(run=run.id, environment=environment)) is not None:
            self.notify(tr("{id} is queued again", id=run.id))

    @work(group="command")
    async def action_queue(self, by: int) -> None:
        """Move a queued run `by` places towards the end of the queue (negative: towards its start)."""
        run = self.current_run
        if run is None or not run.position:
            self.notify(tr("only a queued run can be moved in the queue"), severity="warning")
        elif moved := await self.app.ask("reorder", Reorder(run=run.id, position=max(1, run.position + by))):
            priority = (
                tr(", with priority {priority}", priority=moved.priority) if moved.priority != run.priority else ""
            )
            self.notify(
                tr("{id} is now number {position}{priority}", id=run.id, position=moved.position, priority=priority)
            )
