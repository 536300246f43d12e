"""What one does with a run besides steering it: more steps, another beginning, a fork, labels, its log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from textual import work

from cockpit.language.translate import tr
from cockpit.profiles.files import user_folder
from cockpit.screens.base import opens_dialog
from cockpit.screens.run_actions import RunActionsScreen
from cockpit.state.formatting import format_number, format_size
from engine.protocol.home import make_private
from engine.protocol.messages import Label, Problem, ProblemError, Resume, Run, RunRef

SHORTEST_FORK = "# from the run {run}\n"
_STEPS = re.compile(r"(\+?)([0-9]{1,12})")


class RunKeepingScreen(RunActionsScreen):
    """`targets` are the runs that labels concern: the current one, or more where several can be chosen."""

    @property
    def targets(self) -> Sequence[Run]:
        return [self.current_run] if self.current_run is not None else []

    # ── another attempt ───────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(group="command")
    async def action_extend(self) -> None:
        """Ask how many steps more, until the answer is a number, and queue the next attempt."""
        from cockpit.widgets.prompt import Prompt

        run = self.current_run
        if run is None:
            return
        done, problem, text = run.step, "", ""
        while True:
            about = tr(
                "It has done {done:,} of {max_steps:,} steps. +N: N steps more; N: go on until step N.",
                done=done,
                max_steps=run.max_steps,
            )
            answer = await self.app.push_screen_wait(Prompt(tr("Extend {id}", id=run.id), problem + about, text))
            if not answer:
                return
            text, number = answer, _STEPS.fullmatch(answer.replace(",", "").strip())
            last = (done if number[1] else 0) + int(number[2]) if number else 0
            if last > done:
                break
            problem = tr("✗ {answer} is no step after {done:,}\n", answer=answer, done=done)
        if await self._queue_again(run, Resume(run=run.id, changes={"training.max_steps": last})):
            self.notify(tr("{id} is queued again, until step {last:,}", id=run.id, last=last))

    @opens_dialog
    @work(group="command")
    async def action_from_step(self) -> None:
        """Go on from a checkpoint that the user picks."""
        from cockpit.widgets.picker import Choice, Picker

        run = self.current_run
        detail = None if run is None else await self.app.ask("show", RunRef(run=run.id))
        if run is None or detail is None:
            return
        if not detail.checkpoints:
            self.notify(tr("{id} has no checkpoint", id=run.id), severity="warning")
            return
        choices = []
        for each in reversed(detail.checkpoints):
            loss = each.metrics.get("eval/loss")
            parts = [
                format_size(each.bytes),
                tr("eval {loss}", loss=format_number(loss)) if loss is not None else "",
                "best" * each.best,
            ]
            choices.append(Choice(str(each.step), "  ".join(part for part in parts if part)))
        title = tr("Go on with {id} from step", id=run.id)
        chosen = await self.app.push_screen_wait(
            Picker(title, tr("changes made at this step or later do not count"), choices)
        )
        if chosen is None or not chosen.isdecimal():
            return
        if await self._queue_again(run, Resume(run=run.id, step=int(chosen))):
            self.notify(tr("{id} is queued again, from step {chosen:,}", id=run.id, chosen=int(chosen)))

    async def _queue_again(self, run: Run, message: Resume) -> bool:
        """Queue a run's next attempt with the environment of its submission."""
        try:
            message.environment = await asyncio.to_thread(self.app.engine.resume_environment, run.directory)
        except ProblemError as error:
            self.app.notify_problem(error.problem)
            return False
        return await self.app.ask("resume", message) is not None

    # ── its profile ───────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(group="command")
    async def action_fork(self) -> None:
        """Write the run's profile to a new file among the user's, and open it."""
        from cockpit.widgets.prompt import Prompt

        run = self.current_run
        if run is None:
            return
        folder = user_folder(self.app.home)
        name, problem = f"{run.name or run.id}-fork", ""
        while True:
            answer = await self.app.push_screen_wait(
                Prompt(
                    tr("Fork {id}", id=run.id),
                    tr("{problem}A name for the new profile, in {folder}:", problem=problem, folder=folder),
                    name,
                )
            )
            if not answer:
                return
            name, path = answer, folder / f"{answer.removesuffix('.yaml')}.yaml"
            if path.parent == folder and not path.exists():
                break
            problem = tr("✗ {name} exists\n", name=path.name) if path.parent == folder else tr("✗ a name, not a path\n")
        detail = await self.app.ask("show", RunRef(run=run.id))
        if detail is None:
            return
        try:
            make_private(folder)
            path.write_text(SHORTEST_FORK.format(run=run.id) + detail.profile_text, encoding="utf-8")
        except OSError as error:
            self.app.notify_problem(
                Problem(code="file.unwritable", title=tr("The profile could not be written"), cause=str(error))
            )
            return
        await self.app.open_profile(path)

    # ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(group="command")
    async def action_tags(self) -> None:
        """Change tags: one run's are edited as a line, those of several are added and removed."""
        from cockpit.widgets.prompt import Prompt

        runs = self.targets
        if not runs:
            return
        one = len(runs) == 1
        about = tr("Tags, one word each.") if one else tr("Tags to add, and -tag to remove from all of them.")
        before = " ".join(runs[0].tags) if one else ""
        name = runs[0].id if one else tr("{runs} runs", runs=len(runs))
        answer = await self.app.push_screen_wait(Prompt(tr("Tags of {name}", name=name), about, before))
        if answer is None:
            return
        words = [word.lstrip("#") for word in answer.split()]
        removed = [word[1:] for word in words if word.startswith("-")]
        added = [word for word in words if not word.startswith("-")]
        if one:
            removed = [tag for tag in runs[0].tags if tag not in added]
        for run in runs:
            if await self.app.ask("label", Label(run=run.id, add=added, remove=removed)) is None:
                return

    @opens_dialog
    @work(group="command")
    async def action_note(self) -> None:
        from cockpit.widgets.prompt import Prompt

        run = self.current_run
        if run is None:
            return
        answer = await self.app.push_screen_wait(
            Prompt(tr("Note on {id}", id=run.id), tr("A line about it; empty removes it."), run.note)
        )
        if answer is not None:
            await self.app.ask("label", Label(run=run.id, note=answer))

    @work(group="command")
    async def action_pin(self) -> None:
        """Pin the runs, or let go of them when all are pinned."""
        runs = self.targets
        pinned = not all(run.pinned for run in runs)
        for run in runs:
            await self.app.ask("label", Label(run=run.id, pinned=pinned))

    def action_clean(self) -> None:
        """Show what takes room, and remove what nothing needs."""
        from cockpit.screens.clean_dialog import CleanDialog

        self.app.push_screen(CleanDialog())

    # ── its log ───────────────────────────────────────────────────────────────────────────────────────────────────

    def action_log(self) -> None:
        from cockpit.widgets.log_viewer import LogViewer

        run = self.current_run
        if run is not None:
            self.app.push_screen(LogViewer(run.id))
