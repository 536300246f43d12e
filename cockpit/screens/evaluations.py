"""A run's evaluations: their metrics over the steps, every reply with its scores, comparisons, and new evaluations."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.screens.measuring import ask_settings
from cockpit.state.app_state import RunHistory
from cockpit.state.evaluation_results import (
    BEST,
    MUTED,
    best_values,
    compare_evaluations,
    describe_evaluation,
    evaluation_title,
    metric_names,
    origin_name,
    pass_mark,
)
from cockpit.state.formatting import counted, format_number
from cockpit.widgets.evaluation_replies import EvaluationReplies
from cockpit.widgets.picker import Choice, Picker
from engine.protocol.messages import ProblemError, ServiceEvent

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

NOTHING = """\
This run has no evaluations yet.

[bold]n[/]  measures a checkpoint now
A profile requests sampled replies during training with  evaluation: {task: triples, samples: 32}\
"""
LEADING = {"": 1, "step": 7, "by": 5, "ok": 2, "replies": 7}
"""Heading -> width, before the metrics."""


class EvaluationsScreen(CockpitScreen):
    OVER = "Results"
    HELP_TEXT = """\
The evaluations of one run, from its training and from `cockpit eval`. ★ marks the best on the same rows.
Enter shows the replies, the worst first; t sorts them by another score, f shows those that passed or failed.
Mark two evaluations with o to see whether their difference is beyond noise.
n measures a checkpoint, on the rows that the run held out or on a file. Leaving this screen stops the measurement; what
it has finished is kept."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Replies"),
        Binding("o", "mark", "Compare"),
        Binding("n", "measure", "Measure"),
        Binding("t", "sort", "Sort"),
        Binding("f", "filter", "Filter"),
        Binding("r", "reload", "Reload", show=False),
        Binding("x", "cancel", "Stop it"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
        Binding("pagedown", "scroll(1)", "Reply down", show=False),
        Binding("pageup", "scroll(-1)", "Reply up", show=False),
        Binding("escape,q", "leave", "Back", key_display="Esc"),
    ]
    DEFAULT_CSS = """
    EvaluationsScreen #place {
        height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis;
    }
    EvaluationsScreen #progress { height: 1; background: $panel; padding: 0 1; display: none; text-wrap: nowrap; }
    EvaluationsScreen #progress.-shown { display: block; }
    EvaluationsScreen DataTable { background: $background; scrollbar-size: 1 1; }
    EvaluationsScreen DataTable > .datatable--fixed { background: $background; color: $foreground; }
    EvaluationsScreen VerticalScroll { scrollbar-size-vertical: 1; }
    EvaluationsScreen #list { height: 1fr; }
    EvaluationsScreen #listing { height: 1fr; }
    EvaluationsScreen #below { height: auto; max-height: 60%; border-top: solid $primary; padding: 0 1; }
    EvaluationsScreen #about { height: auto; }
    EvaluationsScreen #compared { height: 1fr; padding: 0 1; }
    EvaluationsScreen #none { height: 1fr; padding: 1 2; }
    EvaluationsScreen #none, EvaluationsScreen #replies { display: none; }
    EvaluationsScreen #compared, EvaluationsScreen #listing { display: none; }
    EvaluationsScreen.-none #none, EvaluationsScreen.-list #listing, EvaluationsScreen.-replies #replies,
    EvaluationsScreen.-compared #compared { display: block; }
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_id = run
        self.reader, self.measurer = ServiceClient(self.app, "evaluate"), ServiceClient(self.app, "evaluate")
        self.evaluations: list[dict[str, Any]] = []
        self.view = ""
        self._marked: list[str] = []
        """Names of the evaluations marked for comparison, at most two."""
        self._request = ""
        """The request of the running evaluation; empty without one."""
        self._reported = 0
        """Evaluations that the run's training has reported."""

    def compose_body(self) -> ComposeResult:
        yield Static(id="place")
        yield Static(tr(NOTHING), id="none")
        with Vertical(id="listing"):
            yield DataTable(id="list", cursor_type="row", zebra_stripes=True)
            with VerticalScroll(id="below", can_focus=False):
                yield Static(id="about")
        yield EvaluationReplies(lambda question, arguments: self._ask(self.reader, question, arguments), id="replies")
        with VerticalScroll(id="compared"):
            yield Static(id="comparison")
        yield Static(id="progress")

    def on_mount(self) -> None:
        self._show_status(tr("reading …"))
        self.action_reload()

    async def on_unmount(self) -> None:
        await self.reader.close()
        await self.measurer.close()

    def on_resize(self) -> None:
        if self.view == "list":
            self._describe()

    def receive(self, state: AppState, body: object) -> None:
        history = state.histories.get(self.run_id, RunHistory())
        if len(history.evaluations) != self._reported:
            self._reported = len(history.evaluations)
            if self.view in ("list", "none"):
                self.action_reload()
        if isinstance(body, ServiceEvent) and body.request == self._request and body.kind == "progress":
            self._show_progress(body.data)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "measure" and self.app.readonly:
            return False
        if action == "cancel":
            return bool(self._request)
        if action in ("sort", "filter"):
            return self.view == "replies"
        if action in ("open", "mark", "measure"):
            return self.view in ("list", "none", "")
        return True

    # ── the list ──────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="list")
    async def action_reload(self) -> None:
        found = await self._ask(self.reader, "listed", {"run": self.run_id})
        if found is None:
            return
        self.evaluations = found["evaluations"]
        self._marked = [name for name in self._marked if any(each["name"] == name for each in self.evaluations)]
        if self.view not in ("replies", "compared"):  # do not take away what the user is reading
            self._fill_list()

    def _fill_list(self) -> None:
        listing = self.query_one("#list", DataTable)
        at = listing.cursor_row if listing.row_count else len(self.evaluations)
        names = metric_names(self.evaluations)
        best = best_values(self.evaluations)
        listing.clear(columns=True)
        for heading, width in LEADING.items():
            listing.add_column(tr(heading), width=max(width, cell_len(tr(heading))), key=heading or "mark")
        for name in names:
            listing.add_column(Text(name), width=max(len(name), 8), key=name)
        listing.fixed_columns = len(LEADING) - 1
        for place, each in enumerate(self.evaluations):
            mark = "◆◇"[self._marked.index(each["name"])] if each["name"] in self._marked else " "
            figures = [_format_cell(each["metrics"].get(name), (place, name) in best) for name in names]
            listing.add_row(
                Content.styled(mark, "$accent"),
                Content(f"{each['step']:>7,}"),
                Content(origin_name(each)),
                pass_mark(each),
                Content(f"{each['replies'] or '–':>7}"),
                *figures,
            )
        self._show("list" if self.evaluations else "none")
        if self.evaluations:
            listing.move_cursor(row=min(at, len(self.evaluations) - 1), animate=False)
            listing.focus()
        self._describe()

    def _describe(self) -> None:
        chosen = self._selected()
        marked = tr("  ·  o on another one compares the two") if len(self._marked) == 1 else ""
        evaluations = counted(len(self.evaluations), "evaluation")
        self._show_status(
            f"{self.run_id}  ·  {evaluations}  ·  {BEST} "
            + tr("best on the same rows")
            + (marked or tr("  ·  Enter: replies"))
        )
        self.query_one("#about", Static).update(describe_evaluation(chosen, self.app.size.width - 3) if chosen else "")

    def _selected(self) -> dict[str, Any] | None:
        at = self.query_one("#list", DataTable).cursor_row
        return self.evaluations[at] if 0 <= at < len(self.evaluations) else None

    @on(DataTable.RowHighlighted, "#list")
    def _row_highlighted(self) -> None:
        if self.view == "list":
            self._describe()

    @on(DataTable.RowSelected, "#list")
    def _row_selected(self) -> None:
        self.action_open()

    def action_mark(self) -> None:
        """Mark an evaluation for comparison. The second mark compares the two."""
        chosen = self._selected()
        if chosen is None:
            return
        if not chosen["directory"]:
            self.notify(tr("its replies were not stored: measure that checkpoint with n"), severity="warning")
            return
        name = chosen["name"]
        others = [each for each in self._marked if each != name]
        self._marked = others if name in self._marked else [*others, name]
        if len(self._marked) == 2:
            self._compare()
        else:
            self._fill_list()

    @work(exclusive=True, group="compare")
    async def _compare(self) -> None:
        named = {each["name"]: each for each in self.evaluations}
        pair, self._marked = sorted((named[name] for name in self._marked), key=self.evaluations.index), []
        arguments = {"first": pair[0]["directory"], "second": pair[1]["directory"]}
        self._show_status(tr("comparing …"))
        result = await self._ask(self.reader, "compare", arguments)
        if result is None:
            self._fill_list()
            return
        self._show("compared")
        self._show_status(
            tr("{first} against {second}", first=evaluation_title(pair[0]), second=evaluation_title(pair[1]))
            + f"  ·  {pair[0]['data']}"
            + tr("  ·  Esc goes back")
        )
        first, second = (f"{each['step']:,} {origin_name(each)}" for each in pair)
        self.query_one("#comparison", Static).update(
            compare_evaluations(result, first, second, self.app.size.width - 3)
        )
        self.query_one("#compared").focus()

    # ── the replies ───────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="replies")
    async def action_open(self) -> None:
        chosen = self._selected()
        if chosen is None or self.view != "list":
            return
        if not chosen["directory"] or not chosen["replies"]:
            self.notify(tr("its replies were not stored"), severity="warning")
            return
        if await self.query_one(EvaluationReplies).open(chosen):
            self._show("replies")
            self._show_headline()
            self.query_one("#rows").focus()

    @work(exclusive=True, group="replies")
    async def action_sort(self) -> None:
        await self.query_one(EvaluationReplies).next_sort()
        self._show_headline()

    @work(exclusive=True, group="replies")
    async def action_filter(self) -> None:
        await self.query_one(EvaluationReplies).next_filter()
        self._show_headline()

    def _show_headline(self) -> None:
        self._show_status(self.query_one(EvaluationReplies).headline + tr("  ·  Esc goes back"))

    def action_scroll(self, by: int) -> None:
        panel = self.query_one({"replies": "#reply", "compared": "#compared"}.get(self.view, "#below"))
        panel.scroll_relative(y=by * max(1, panel.size.height - 2), animate=False)

    def action_move(self, by: int) -> None:
        if self.view == "compared":
            self.query_one("#compared").scroll_relative(y=by, animate=False)
        else:
            table = self.query_one("#rows" if self.view == "replies" else "#list", DataTable)
            table.move_cursor(row=table.cursor_row + by, animate=False)

    def action_leave(self) -> None:
        """Esc goes back to the list, then to the previous screen."""
        if self.view in ("replies", "compared"):
            self._fill_list()
        elif self._marked:
            self._marked = []
            self._fill_list()
        else:
            self.app.pop_screen()

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(exclusive=True, group="measure")
    async def action_measure(self) -> None:
        """Choose a checkpoint, ask for the settings, and measure it."""
        if self._request:
            self.notify(tr("an evaluation is running; x stops it"), severity="warning")
            return
        found = await self._ask(self.reader, "listed", {"run": self.run_id})
        if found is None:
            return
        steps = list(reversed(found["checkpoints"]))
        if not steps:
            self.notify(tr("this run has no checkpoint yet"), severity="warning")
            return
        choices = [Choice(f"{self.run_id}@{step}", tr("step {step:,}", step=step)) for step in steps]
        target = await self.app.push_screen_wait(Picker(tr("Measure which checkpoint"), tr("type to filter"), choices))
        if target is None:
            return
        settings = await ask_settings(self.app, target)
        if settings is not None:
            await self._measure(target, settings)

    async def _measure(self, target: str, settings: dict[str, Any]) -> None:
        self._request = uuid.uuid4().hex
        self.refresh_bindings()
        self._show_progress({"stage": "starting", "target": target})
        result = await self._ask(self.measurer, "evaluate", {"target": target, **settings}, self._request)
        self._request = ""
        self.query_one("#progress").remove_class("-shown")
        self.refresh_bindings()
        await self.measurer.close()  # frees the model's memory
        if result is not None:
            main = next(iter(result["metrics"].items()), ("replies", result["replies"]))
            self.notify(f"{target}: {main[0]} {format_number(main[1])}", title=tr("measured"))
        self.action_reload()

    @work(group="cancel")
    async def action_cancel(self) -> None:
        if self._request:
            await self.measurer.cancel(self._request)

    def _show_progress(self, data: dict[str, Any]) -> None:
        done, total, length = data.get("done", 0), data.get("total", 0), 20
        bar = self.query_one("#progress", Static).add_class("-shown")
        full = round(length * done / total) if total else 0
        share = tr(" {done:,} of {total:,}", done=done, total=total) if total else ""
        bar.update(
            Content.assemble(
                (f"{data.get('target', '')}  ", "$text"),
                ("━" * full, "$accent"),
                ("─" * (length - full), "$primary 50%"),
                f"  {data.get('stage', '')}{share}",
                (tr("  x stops it"), MUTED),
            )
        )

    # ── the worker ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, worker: ServiceClient, question: str, arguments: dict[str, Any], request: str = "") -> Any:
        """The worker's answer, or None after showing what went wrong."""
        try:
            return await worker.ask(question, arguments, request)
        except ProblemError as error:
            if self.is_mounted:
                self.app.notify_problem(error.problem)
            return None

    def _show_status(self, text: str) -> None:
        self.query_one("#place", Static).update(Content(text), layout=False)

    def _show(self, view: str) -> None:
        self.view = view
        for each in ("none", "list", "replies", "compared"):
            self.set_class(each == view, f"-{each}")
        self.refresh_bindings()


def _format_cell(value: float | None, is_best: bool) -> Content:
    if value is None:
        return Content.styled("–", MUTED)
    text = format_number(value)
    return Content.styled(f"{text} {BEST}", "bold $success") if is_best else Content(text)
