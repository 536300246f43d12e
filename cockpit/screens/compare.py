"""How runs differ: settings, data, batches, results with intervals, and what each has cost."""

from __future__ import annotations

import asyncio
import itertools
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from cockpit.connection.run_sides import read_side
from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.screens.base import CockpitScreen
from cockpit.state.evaluation_results import VERDICTS
from cockpit.state.formatting import counted
from cockpit.state.run_comparison import (
    Section,
    Side,
    compare_sides,
    energy_requests,
    evaluation_rows,
    measure_energy,
)
from cockpit.widgets.chart_raster import RUN_MARKS, RUNS
from engine.protocol.home import RunDirectory
from engine.protocol.messages import ProblemError
from engine.protocol.terminal import show_controls

LEAST = 6
"""Cells that a column has at least."""
LONGEST = 1000
"""Characters of a value that are looked at: a setting may be a whole template."""


class CompareScreen(CockpitScreen):
    OVER = "Compare"
    HELP_TEXT = """\
How the marked runs differ from the first one. Batches are compared at a step of which both runs have a checkpoint.
The difference between two evaluations has a 95 % interval. If it contains 0, the difference may be noise."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "metrics", "Curves"),
        Binding("r", "reload", "Reload"),
        Binding("c", "copy", "Copy"),
        Binding("escape", "leave", "Back", key_display="Esc"),
        Binding("q", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    CompareScreen VerticalScroll { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    CompareScreen #text { width: 1fr; height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, runs: list[str]) -> None:
        super().__init__()
        self.runs = runs[:RUNS]
        self.reader = ServiceClient(self.app, "evaluate")
        self._sides: list[Side] = []
        self._compared: dict[str, Any] | None = None
        self._problem = ""

    def compose_body(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(tr("reading …"), id="text")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.action_reload()

    def on_resize(self) -> None:
        self._show()

    async def on_unmount(self) -> None:
        await self.reader.close()

    @work(exclusive=True, group="compare")
    async def action_reload(self) -> None:
        """Show what the files say at once, then energy and evaluations when the engine has found them."""
        known = [(run, self.app.state.runs.get(run)) for run in self.runs]
        paths = [Path(run.directory) if run is not None and run.directory else self.app.home.run(name).path
                 for name, run in known]  # fmt: skip
        engine = self.app.engine
        missing = [
            name for (name, _), path in zip(known, paths, strict=True) if not engine.is_here or not path.is_dir()
        ]
        if missing:
            self._problem = tr("The files of {missing} are not on this host", missing=", ".join(missing))
            if engine.elsewhere:
                self._problem += tr(": {command} compare {runs}", command=engine.command, runs=shlex.join(self.runs))
            self._show()
            return
        now, self._problem, self._compared = time.time(), "", None
        try:
            self._sides = [await asyncio.to_thread(read_side, RunDirectory(path), now) for path in paths]
        except OSError as error:
            self._problem = f"{error.filename}: {error.strerror}"
            self._show()
            return
        self._show()
        self._sides = [await self._with_energy(side) for side in self._sides]
        self._show()
        try:
            self._compared = (await self.reader.ask("compare_runs", {"runs": self.runs}))["compared"]
        except ProblemError as error:
            self._compared, self._problem = {}, tr_engine(str(error.problem))
        self._show()

    async def _with_energy(self, side: Side) -> Side:
        known = []
        for query, devices, spans in energy_requests(side):
            history = await self.app.ask("telemetry", query)
            part = None if history is None else measure_energy(history.samples, devices, spans)
            known += [] if part is None else [part]
        return replace(side, energy=sum(known) if known else None)

    # ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self) -> None:
        self.query_one("#text", Static).update(self._text(max(20, self.app.size.width - 4)))

    def _text(self, width: int) -> Content:
        blocks = [self._legend()]
        if self._problem:
            blocks.append(Content.styled(self._problem, "$text-warning"))
        if self._sides:
            blocks += [
                _section(section, 0 if section.sentences else len(self.runs), width)
                for section in compare_sides(self._sides)
            ]
            blocks += self._evaluations(width)
        elif not self._problem:
            blocks.append(Content.styled(tr("reading …"), "$text-muted"))
        return Content("\n\n").join(blocks)

    def _legend(self) -> Content:
        return Content("\n").join(
            Content.assemble(
                (f"{mark} ", "bold $accent"), (run, "bold $text"), (tr(" the others are held to it"), "dim")
            )
            if not at
            else Content.assemble((f"{mark} ", "bold $accent"), (run, "bold $text"))
            for at, (mark, run) in enumerate(zip(RUN_MARKS, self.runs, strict=False))
        )

    def _evaluations(self, width: int) -> list[Content]:
        if self._compared is None:
            return [_section(Section(tr("evaluations"), note=tr("comparing …")), 1, width)]
        blocks = []
        for run, each in self._compared.items():
            title = tr(
                "evaluations: {RUN_MARKS} against {RUN_MARKS_2}",
                RUN_MARKS=RUN_MARKS[self.runs.index(run)],
                RUN_MARKS_2=RUN_MARKS[0],
            )
            if each is None:
                blocks.append(_section(Section(title, note=tr("none on the same rows with stored replies")), 1, width))
                continue
            rows = [
                (name, first, second, change, interval, f"{VERDICTS[verdict][0]} {verdict}")
                for name, first, second, change, interval, verdict in evaluation_rows(each)
            ]
            note = tr(
                "steps {step:,} and {first_step:,}, {rows}",
                step=each["step"],
                first_step=each["first_step"],
                rows=counted(each["compared_rows"], "row"),
            )
            head = ("", RUN_MARKS[0], RUN_MARKS[self.runs.index(run)], "change", tr("95 % interval"), "")
            blocks.append(_section(Section(title, rows, note), 0, width, head))
        return blocks

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_metrics(self) -> None:
        from cockpit.screens.metrics import MetricsScreen

        self.app.push_screen(MetricsScreen(self.runs))

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._text(160).plain)
        self.notify(tr("copied: the comparison"))

    def action_leave(self) -> None:
        self.app.pop_screen()


def _section(section: Section, runs: int, width: int, head: Sequence[str] = ()) -> Content:
    """A section's title and its rows in columns; the columns of values share the width that names leave."""
    title = Content.assemble(
        (section.title, "bold $accent"), (f"  {section.note}" if section.note else "", "$text-muted")
    )
    rows = list(section.rows)
    if not rows:
        return title
    count = len(rows[0])
    if not head and count == runs + 1 and runs > 1:
        head = ("", *RUN_MARKS[:runs])
    if count == 2 and not head:  # sentences
        lines = [Content.assemble((f"{name}  ", "bold $text"), text).wrap(width) for name, text in rows]
        return Content("\n").join([title, *itertools.chain(*lines)])
    listed = [tuple(head), *rows] if head else rows
    widths = [min(width, max(cell_len(_flat(row[at])) for row in listed)) for at in range(count)]
    while sum(widths) + 2 * (count - 1) > width and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    found = [title]
    for at, row in enumerate(listed):
        cells = [_fit(text, room) for text, room in zip(row, widths, strict=True)]
        found.append(Content.styled("  ".join(cells).rstrip(), "$text-muted" if head and not at else "$text"))
    return Content("\n").join(found)


def _fit(text: str, cells: int) -> str:
    """The text in exactly so many cells; of one that is too long its end is kept, where paths and ids differ."""
    text = _flat(text)
    if cell_len(text) > cells:
        text = text[-cells:]
        while cell_len(text) > cells - 1:
            text = text[1:]
        text = f"…{text}"
    return set_cell_size(text, cells)


def _flat(text: str) -> str:
    """The text on one line, as it is shown; of a long one the end."""
    return show_controls(text[-LONGEST:].replace("\n", "⏎"), keep="")
