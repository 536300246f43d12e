"""The grids of an engine, from the list of runs: one is chosen, and its runs are compared."""

from __future__ import annotations

import asyncio

from textual import work

from cockpit.connection.json_verb import read_json
from cockpit.language.translate import tr
from cockpit.profiles import grids
from cockpit.profiles.grids import Grid
from cockpit.screens.base import opens_dialog
from cockpit.screens.run_batch import RunBatchScreen
from cockpit.state.formatting import counted, format_age
from engine.protocol.messages import ProblemError


class GridsScreen(RunBatchScreen):
    """Adds `grids`: compare the runs of a grid."""

    @opens_dialog
    @work(exclusive=True, group="grids")
    async def action_grids(self) -> None:
        """Choose a grid, show its runs, and open the one that is chosen there."""
        from cockpit.widgets.grid_dialog import GridDialog
        from cockpit.widgets.picker import Choice, Picker

        found = await self._read_grids()
        if not found:
            hint = tr("cockpit train PROFILE --grid training.learning_rate=1e-4,3e-4 queues one")
            self.notify(hint, title=tr("No grids yet"), severity="warning")
            return
        chosen = found[0]
        if len(found) > 1:
            choices = [Choice(each.name, _describe(each)) for each in found]
            name = await self.app.push_screen_wait(
                Picker(tr("Compare the runs of a grid"), tr("the newest first"), choices)
            )
            chosen = next((each for each in found if each.name == name), None)  # type: ignore[assignment]
        if chosen is not None and (run := await self.app.push_screen_wait(GridDialog(chosen))):
            await self.app.open_run(run)

    async def _read_grids(self) -> list[Grid]:
        """The grids of the engine's home, the newest first; none where they cannot be read."""
        link = self.app.engine.link
        if link is None:
            return await asyncio.to_thread(grids.list_grids, self.app.home)
        try:
            listed = await read_json(link.build_command("--json", "grid"))
            return [grids.read(each) for each in listed or ()]
        except (ProblemError, ValueError):
            return []


def _describe(grid: Grid) -> str:
    return tr(
        "{runs} of {profile} · {axes} · {created}",
        runs=counted(len(grid.runs), "run"),
        profile=grid.profile,
        axes=", ".join(grid.axes),
        created=format_age(grid.created),
    )
