"""Groups in the list of runs: headings that fold, joining and leaving; and the priority of waiting runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from textual import work

from cockpit.language.translate import tr
from cockpit.screens.base import opens_dialog
from cockpit.screens.run_overlay import RunOverlayScreen
from cockpit.state.formatting import counted
from cockpit.state.run_groups import RunGroup, arrange, group_key, list_groups, shared_group
from engine.protocol.messages import Label, Reorder, Run
from engine.protocol.states import QUEUED

HIGHEST = 100
_PRIORITY = re.compile(r"[+-]?[0-9]{1,3}")
OF_GROUP = ("group", "tags", "pin")
"""Actions that concern all runs of the group under the cursor."""


class RunGroupsScreen(RunOverlayScreen):
    """`list_lines` makes the lines of the list; `current_group` is the heading under the cursor."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, RunGroup] = {}
        """The groups that are listed, by their keys."""

    @property
    def current_group(self) -> RunGroup | None:
        raise NotImplementedError

    @property
    def by_group(self) -> bool:
        return bool(self.app.settings.get("runs.by_group", False))

    @property
    def targets(self) -> Sequence[Run]:
        group = self.current_group
        return super().targets if self.chosen or group is None else group.runs

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("fold", "fold_all"):
            return self.is_mounted and bool(self.groups)
        if action in ("open", "choose") and self.is_mounted and self.current_group is not None:
            return True
        if action in OF_GROUP and self.is_mounted and self.current_group is not None:
            return not self.app.readonly
        return super().check_action(action, parameters)

    def list_lines(self, runs: Iterable[Run]) -> list[Run | RunGroup]:
        """The runs, below the headings of their groups if they are shown by group."""
        lines: list[Run | RunGroup] = arrange(runs, self._folded()) if self.by_group else [*runs]
        self.groups = {line.key: line for line in lines if isinstance(line, RunGroup)}
        return lines

    def action_by_group(self) -> None:
        """Show the runs by group, or in one list."""
        if not self.by_group and not any(run.group for run in self.app.state.runs.values()):
            hint = tr("u puts the run under the cursor into one; cockpit train PROFILE --grid K=V,V makes one")
            self.notify(hint, title=tr("No run is in a group"), severity="warning")
            return
        self.app.settings.set("runs.by_group", not self.by_group)
        self.show_list()

    def action_fold(self) -> None:
        """Fold or unfold the group under the cursor, or that of the run there."""
        group = self.current_group
        run = self.current_run
        name = group.name if group else run.group if run else ""
        if name:
            self._set_folded({name} ^ self._folded())
            self.show_line(group_key(name))

    def action_fold_all(self) -> None:
        """Fold all groups; when all are folded, unfold them."""
        names = {group.name for group in self.groups.values()}
        folded = self._folded()
        self._set_folded(folded - names if folded >= names else folded | names)

    def _folded(self) -> set[str]:
        names: list[object] = self.app.settings.get("runs.folded", [])
        return {name for name in names if isinstance(name, str)}

    def _set_folded(self, names: set[str]) -> None:
        known = {run.group for run in self.app.state.runs.values()}
        self.app.settings.set("runs.folded", sorted(names & known))
        self.show_list()

    def show_line(self, key: str) -> None:
        """Put the cursor on a line of the list."""
        raise NotImplementedError

    @opens_dialog
    @work(group="command")
    async def action_group(self) -> None:
        """Ask for the group that the runs join; an empty name: they leave theirs."""
        from cockpit.widgets.prompt import Prompt

        runs = list(self.targets)
        if not runs:
            return
        known = list_groups(self.app.state.runs.values())
        about = tr("The name of a group, one word; empty: none.") + (
            tr("\nThere are: {known}", known=", ".join(known[:8])) if known else ""
        )
        title = tr("Group of {id}", id=runs[0].id if len(runs) == 1 else counted(len(runs), "run"))
        answer = await self.app.push_screen_wait(Prompt(title, about, shared_group(runs)))
        if answer is None:
            return
        for run in runs:
            if await self.app.ask("label", Label(run=run.id, group=answer)) is None:
                return
        if answer and not self.by_group:
            self.notify(
                tr("G shows the runs by group"),
                title=tr("In the group {group}: {runs}", group=answer, runs=counted(len(runs), "run")),
            )

    @opens_dialog
    @work(group="command")
    async def action_priority(self) -> None:
        """Ask for a priority until the answer is one, and give it to the waiting runs."""
        from cockpit.widgets.prompt import Prompt

        runs = [run for run in self.targets if run.state == QUEUED]
        if not runs:
            return
        problem, text = "", str(runs[0].priority)
        title = tr("Priority of {id}", id=runs[0].id if len(runs) == 1 else counted(len(runs), "run"))
        while True:
            about = tr("From -{highest} to {highest}; runs with a higher one start first. 0 is usual.", highest=HIGHEST)
            answer = await self.app.push_screen_wait(Prompt(title, problem + about, text))
            if not answer:
                return
            if _PRIORITY.fullmatch(answer) and abs(int(answer)) <= HIGHEST:
                break
            text, problem = answer, tr("✗ {answer} is no whole number in this range\n", answer=answer)
        for run in sorted(runs, key=lambda run: run.position):
            if await self.app.ask("reorder", Reorder(run=run.id, priority=int(answer))) is None:
                return
