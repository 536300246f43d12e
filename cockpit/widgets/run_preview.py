"""The run under the cursor, beside the list: curve, problem, note, settings that differ, checkpoints."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.formatting import format_number, format_size, format_state
from cockpit.state.run_diff import Difference, compare, find_parent
from cockpit.state.run_history import format_value
from cockpit.state.run_queue import describe_place, describe_wait, list_queue
from cockpit.widgets.chart import Chart, curve_from_series
from cockpit.widgets.chart_raster import Trace
from cockpit.widgets.line import MUTED, Line
from engine.protocol.messages import Run, RunDetail, RunRef, SeriesQuery, SeriesReply
from engine.protocol.states import LIVE

if TYPE_CHECKING:
    from cockpit.connection.engine_app import EngineApp

PAUSE = 0.15
"""Seconds that the cursor has to rest on a run before it is asked for."""
KEPT = 50
"""Profiles that are kept as plain data: reading one takes some milliseconds."""
LOSS = "train/loss"
LOWEST = 16
"""Rows of the pane from which on it has a curve."""
LONGEST = 60
"""Characters of a value."""


class RunPreview(Vertical):
    """Shows one run. Nothing is asked while it is hidden."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    RunPreview { border-left: solid $primary 50%; padding: 0 1; }
    RunPreview #preview-title { height: 1; }
    RunPreview Chart { height: 12; min-height: 6; }
    RunPreview VerticalScroll { height: 1fr; scrollbar-size-vertical: 1; }
    RunPreview #preview-text { height: auto; width: 1fr; }
    """

    def __init__(self) -> None:
        super().__init__(id="preview")
        self.run_id: str | None = None
        self._state: tuple[object, ...] = ()
        self._curve = False
        """Whether there is a curve to show."""
        self._documents: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    def compose(self) -> ComposeResult:
        yield Line(id="preview-title")
        yield Chart(tr("loss"), id="preview-loss")
        with VerticalScroll():
            yield Static(id="preview-text")

    def show_run(self, run: Run | None) -> None:
        """Show this run, unless that is what is shown."""
        if not self.display:
            self._state = ()
            return
        state = (
            ()
            if run is None
            else (
                *(run.id, run.attempt, run.state, run.tags, run.note, run.pinned, run.group),
                *((run.position, run.priority, run.reason) if run.position else ()),
            )
        )
        if state == self._state:
            return
        self._state = state
        if run is None:
            self.run_id, self._curve = None, False
            self.query_one("#preview-title", Line).show(Content(""))
            self._write(Content(""))
            self.query_one(Chart).load({})
        else:
            self._load(run)

    @work(exclusive=True, group="preview")
    async def _load(self, run: Run) -> None:
        await asyncio.sleep(PAUSE)
        if self.app.client is None:
            self._state = ()
            return
        parent = find_parent(run, self.app.state.runs.values())
        asked = [
            self.app.ask("show", RunRef(run=run.id)),
            self.app.ask("series", SeriesQuery(run=run.id, names=[LOSS])),
        ]
        if parent is not None:
            asked.append(self.app.ask("show", RunRef(run=parent.id)))
        detail, reply, *before = await asyncio.gather(*asked)
        if detail is None or reply is None:
            return
        differences = await self._compare(detail, before[0]) if before and before[0] else []
        self.run_id = run.id
        self._show(detail, reply, parent, differences)

    async def _compare(self, now: RunDetail, before: RunDetail) -> list[Difference]:
        documents = [await asyncio.to_thread(self._read, detail) for detail in (before, now)]
        return compare(*documents)

    def _read(self, detail: RunDetail) -> dict[str, Any]:
        from cockpit.profiles.yaml_edit import read_yaml

        key = detail.run.id, detail.run.attempt
        if key not in self._documents:
            self._documents[key] = read_yaml(detail.profile_text)
            while len(self._documents) > KEPT:
                self._documents.popitem(last=False)
        return self._documents[key]

    def _show(self, detail: RunDetail, reply: SeriesReply, parent: Run | None, differences: list[Difference]) -> None:
        run = detail.run
        title = Content.assemble(format_state(run.state), "  ", (run.id, "bold $text"))
        self.query_one("#preview-title", Line).show(title)
        curve = curve_from_series(reply.series[0])
        chart = self.query_one(Chart)
        self._curve = bool(len(curve))
        self._arrange()
        chart.growing = run.state in LIVE
        chart.load({LOSS: Trace(curve)} if len(curve) else {}, run.max_steps)
        lines = describe_queued(run, list_queue(self.app.state.runs.values())) if run.position else []
        self._write(Content("\n").join([*lines, *describe(detail, parent, differences)]))

    def append(self, run: str, points: list[tuple[int, float]]) -> None:
        """New points of a run; those of the one that is shown extend its curve."""
        if run == self.run_id and self.display and points:
            self._curve = True
            self._arrange()
            self.query_one(Chart).append(LOSS, points)

    def on_resize(self) -> None:
        self._arrange()

    def _arrange(self) -> None:
        """Give the curve a third of the height; without room for both, the text has all."""
        self.query_one(Chart).display = self._curve and self.size.height >= LOWEST
        self.query_one(Chart).styles.height = max(7, min(14, self.size.height // 3))

    def _write(self, content: Content) -> None:
        self.query_one("#preview-text", Static).update(content)


def describe_queued(run: Run, queue: Sequence[Run]) -> list[Content]:
    """Its place in the queue, and what it waits for."""
    wait = [] if run.reason else [Content.styled(describe_wait(run, queue), "$warning")]  # a reason is shown anyway
    return [Content.styled(describe_place(run, queue), "$text"), *wait]


def describe(detail: RunDetail, parent: Run | None, differences: list[Difference]) -> list[Content]:
    """The lines below the curve."""
    run, lines = detail.run, []
    if run.problem is not None:
        lines.append(Content.styled(f"✗ {tr_engine(run.problem.title)}", "bold $error"))
        lines += [Content.styled(part, "$text") for part in (tr_engine(run.problem.cause),) if part]
        lines += [Content.styled(f"→ {tr_engine(run.problem.hint)}", "$accent")] if run.problem.hint else []
    elif run.reason:
        lines.append(Content.styled(tr_engine(run.reason), "$warning"))
    if run.group:
        lines.append(Content.assemble((f"{tr('group')} ", MUTED), (run.group, "$text")))
    if run.tags or run.pinned:
        lines.append(
            Content.assemble(
                ("★ " if run.pinned else "", "$accent"), ("  ".join(f"#{tag}" for tag in run.tags), "$secondary")
            )
        )
    lines += [Content.styled(line, "$text") for line in run.note.splitlines()]
    lines += _differences(parent, differences)
    lines += _checkpoints(detail)
    if detail.attempts:
        lines.append(_heading(tr("earlier attempts")))
    for end in reversed(detail.attempts):
        why = tr_engine(end.problem.title if end.problem else end.reason)
        lines.append(
            Content.assemble(format_state(end.state), (tr(" at step {step:,}", step=end.step), MUTED), f"  {why}")
        )
    return lines


def _value(value: Any) -> str:
    """A setting as one writes it, briefly."""
    if isinstance(value, (list, dict, bool)):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return format_value(value)


def _heading(text: str) -> Content:
    return Content.styled(f"\n{text}", "bold $accent")


def _differences(parent: Run | None, differences: list[Difference]) -> list[Content]:
    if parent is None:
        return [_heading(tr("settings")), Content.styled(tr("the first run of this profile"), MUTED)]
    if not differences:
        return [_heading(tr("settings")), Content.styled(tr("those of {id}", id=parent.id), MUTED)]
    rows = [
        Content.assemble(
            (each.key, "$text"), "  ", (_value(each.before), MUTED), " → ", (_value(each.now), "bold $accent")
        )
        for each in differences
    ]
    return [_heading(tr("other settings than {id}", id=parent.id)), *rows]


def _checkpoints(detail: RunDetail) -> list[Content]:
    found = detail.checkpoints
    if not found:
        return []
    total = sum(each.bytes for each in found)
    lines = [_heading(tr("checkpoints  {found}, {total}", found=len(found), total=format_size(total)))]
    for each in reversed(found):
        loss = each.metrics.get("eval/loss")
        lines.append(
            Content.assemble(
                tr("step {step:>7,}  {bytes:>6}", step=each.step, bytes=format_size(each.bytes)),
                (tr("  eval {loss}", loss=format_number(loss)) if loss is not None else "", MUTED),
                ("  best" if each.best else "", "$success"),
            )
        )
    return lines
