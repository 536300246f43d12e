"""A run's evaluations: metrics over its steps, every reply with its scores, two of them compared, and a new one begun."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static

from cockpit.connection.service_client import Worker
from cockpit.screens.base import CockpitScreen
from cockpit.state.app_state import RunTold
from cockpit.state.evaluation_results import (
    BEST,
    MUTED,
    about,
    best,
    columns,
    comparison,
    origin,
    passed,
    settings,
    title,
)
from cockpit.state.formatting import number
from cockpit.widgets.evaluation_replies import Scored
from cockpit.widgets.picker import Choice, Picker
from cockpit.widgets.prompt import Prompt
from engine.protocol.messages import Problem, ProblemError, ServiceEvent

if TYPE_CHECKING:
    from cockpit.state.app_state import State

ASKED = "samples=32"
"""What is offered when an evaluation is begun."""
NOTHING = """\
This run has no evaluations yet.

[bold]n[/]  measures a checkpoint now
While it trains, a profile asks for replies with  evaluation: {task: triples, samples: 32}\
"""
LEADING = {"": 1, "step": 7, "by": 5, "ok": 2, "replies": 7}
"""Heading -> width, before the metrics."""


class EvaluationsScreen(CockpitScreen):
    HELP_TEXT = """\
The evaluations of one run, those of its training and those of `cockpit eval`. ★ is the best of those measured on the same rows.
Enter shows the replies, the worst first; t sorts them by another score, f keeps those that passed or failed. Mark two with o to see
whether their difference is more than noise. n measures a checkpoint: a line of NAME=VALUE says on what (data, task, rows, samples,
max_new_tokens, constrained), without data on the rows that the run held out. Leaving this screen ends it; what is done is kept."""
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
        Binding("escape", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    EvaluationsScreen #place { height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
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
    EvaluationsScreen #none, EvaluationsScreen #replies, EvaluationsScreen #compared, EvaluationsScreen #listing { display: none; }
    EvaluationsScreen.-none #none, EvaluationsScreen.-list #listing, EvaluationsScreen.-replies #replies,
    EvaluationsScreen.-compared #compared { display: block; }
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_id = run
        self.reader, self.measurer = Worker(self.app, "evaluate"), Worker(self.app, "evaluate")
        self.evaluations: list[dict[str, Any]] = []
        self.view = ""
        self._marked: list[str] = []
        """Names of the evaluations to compare, at most two."""
        self._request = ""
        """Of the evaluation that is going on; empty without one."""
        self._told = 0
        """Evaluations that the run's training has told of."""

    def compose_body(self) -> ComposeResult:
        yield Static(id="place")
        yield Static(NOTHING, id="none")
        with Vertical(id="listing"):
            yield DataTable(id="list", cursor_type="row", zebra_stripes=True)
            with VerticalScroll(id="below", can_focus=False):
                yield Static(id="about")
        yield Scored(lambda question, arguments: self._ask(self.reader, question, arguments), id="replies")
        with VerticalScroll(id="compared"):
            yield Static(id="comparison")
        yield Static(id="progress")

    def on_mount(self) -> None:
        self._place("reading …")
        self.action_reload()

    async def on_unmount(self) -> None:
        await self.reader.close()
        await self.measurer.close()

    def on_resize(self) -> None:
        if self.view == "list":
            self._describe()

    def receive(self, state: State, body: object) -> None:
        told = state.told.get(self.run_id, RunTold())
        if len(told.evaluations) != self._told:
            self._told = len(told.evaluations)
            if self.view in ("list", "none"):
                self.action_reload()
        if isinstance(body, ServiceEvent) and body.request == self._request and body.kind == "progress":
            self._progress(body.data)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "measure" and self.app.readonly:
            return None
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
        if self.view not in ("replies", "compared"):  # what somebody reads stays on the screen
            self._list()

    def _list(self) -> None:
        listing = self.query_one("#list", DataTable)
        at = listing.cursor_row if listing.row_count else len(self.evaluations)
        names = columns(self.evaluations)
        tops = best(self.evaluations)
        listing.clear(columns=True)
        for heading, width in LEADING.items():
            listing.add_column(heading, width=width, key=heading or "mark")
        for name in names:
            listing.add_column(name, width=max(len(name), 8), key=name)
        listing.fixed_columns = len(LEADING) - 1
        for place, each in enumerate(self.evaluations):
            mark = "◆◇"[self._marked.index(each["name"])] if each["name"] in self._marked else " "
            figures = [_figure(each["metrics"].get(name), (place, name) in tops) for name in names]
            listing.add_row(
                Content.styled(mark, "$accent"),
                Content(f"{each['step']:>7,}"),
                Content(origin(each)),
                passed(each),
                Content(f"{each['replies'] or '–':>7}"),
                *figures,
            )
        self._show("list" if self.evaluations else "none")
        if self.evaluations:
            listing.move_cursor(row=min(at, len(self.evaluations) - 1), animate=False)
            listing.focus()
        self._describe()

    def _describe(self) -> None:
        chosen = self._chosen()
        marked = "  ·  o on another compares the two" if len(self._marked) == 1 else ""
        count = len(self.evaluations)
        self._place(
            f"{self.run_id}  ·  {count} evaluation{'s'[: count != 1]}  ·  {BEST} best on the same rows{marked or '  ·  Enter: replies'}"
        )
        self.query_one("#about", Static).update(about(chosen, self.app.size.width - 3) if chosen else "")

    def _chosen(self) -> dict[str, Any] | None:
        at = self.query_one("#list", DataTable).cursor_row
        return self.evaluations[at] if 0 <= at < len(self.evaluations) else None

    @on(DataTable.RowHighlighted, "#list")
    def _list_moved(self) -> None:
        if self.view == "list":
            self._describe()

    @on(DataTable.RowSelected, "#list")
    def _list_chosen(self) -> None:
        self.action_open()

    def action_mark(self) -> None:
        """Mark for comparison; the second mark compares."""
        chosen = self._chosen()
        if chosen is None:
            return
        if not chosen["directory"]:
            self.notify("its replies were not kept: measure that checkpoint with n", severity="warning")
            return
        name = chosen["name"]
        self._marked = (
            [each for each in self._marked if each != name] if name in self._marked else [*self._marked, name]
        )
        if len(self._marked) == 2:
            self._compare()
        else:
            self._list()

    @work(exclusive=True, group="compare")
    async def _compare(self) -> None:
        named = {each["name"]: each for each in self.evaluations}
        pair, self._marked = sorted((named[name] for name in self._marked), key=self.evaluations.index), []
        asked = {"first": pair[0]["directory"], "second": pair[1]["directory"]}
        self._place("comparing …")
        told = await self._ask(self.reader, "compare", asked)
        if told is None:
            self._list()
            return
        self._show("compared")
        self._place(f"{title(pair[0])} against {title(pair[1])}  ·  {pair[0]['data']}  ·  Esc goes back")
        first, second = (f"{each['step']:,} {origin(each)}" for each in pair)
        self.query_one("#comparison", Static).update(comparison(told, first, second, self.app.size.width - 3))
        self.query_one("#compared").focus()

    # ── the replies ───────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="replies")
    async def action_open(self) -> None:
        chosen = self._chosen()
        if chosen is None or self.view != "list":
            return
        if not chosen["directory"] or not chosen["replies"]:
            self.notify("no replies were kept of it", severity="warning")
            return
        if await self.query_one(Scored).open(chosen):
            self._show("replies")
            self._headline()
            self.query_one("#rows").focus()

    @work(exclusive=True, group="replies")
    async def action_sort(self) -> None:
        await self.query_one(Scored).resort()
        self._headline()

    @work(exclusive=True, group="replies")
    async def action_filter(self) -> None:
        await self.query_one(Scored).refilter()
        self._headline()

    def _headline(self) -> None:
        self._place(f"{self.query_one(Scored).headline}  ·  Esc goes back")

    def action_scroll(self, by: int) -> None:
        panel = self.query_one(
            "#reply" if self.view == "replies" else "#compared" if self.view == "compared" else "#below"
        )
        panel.scroll_relative(y=by * max(1, panel.size.height - 2), animate=False)

    def action_move(self, by: int) -> None:
        if self.view == "compared":
            self.query_one("#compared").scroll_relative(y=by, animate=False)
        else:
            table = self.query_one("#rows" if self.view == "replies" else "#list", DataTable)
            table.move_cursor(row=table.cursor_row + by, animate=False)

    def action_leave(self) -> None:
        """Esc goes back to the list, then to the screen before."""
        if self.view in ("replies", "compared"):
            self._list()
        elif self._marked:
            self._marked = []
            self._list()
        else:
            self.app.pop_screen()

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="measure")
    async def action_measure(self) -> None:
        """Choose a checkpoint, say on what, and have it measured."""
        if self._request:
            self.notify("one is being measured; x stops it", severity="warning")
            return
        found = await self._ask(self.reader, "listed", {"run": self.run_id})
        if found is None:
            return
        steps = list(reversed(found["checkpoints"]))
        if not steps:
            self.notify("this run has no checkpoint yet", severity="warning")
            return
        choices = [Choice(f"{self.run_id}@{step}", f"step {step:,}") for step in steps]
        target = await self.app.push_screen_wait(Picker("Measure which checkpoint", "type to narrow", choices))
        if target is None:
            return
        wanted = await self._wanted()
        if wanted is not None:
            await self._measure(target, wanted)

    async def _wanted(self) -> dict[str, Any] | None:
        typed, wrong = ASKED, ""
        while True:
            text = f"{wrong}On what, as NAME=VALUE; without data on the rows that the run held out"
            answer = await self.app.push_screen_wait(Prompt("Measure", text, typed))
            if answer is None:
                return None
            typed = answer
            try:
                return settings(answer)
            except ValueError as error:
                wrong = f"✗ {error}\n"

    async def _measure(self, target: str, wanted: dict[str, Any]) -> None:
        self._request = uuid.uuid4().hex
        self.refresh_bindings()
        self._progress({"stage": "starting", "target": target})
        result = await self._ask(self.measurer, "evaluate", {"target": target, **wanted}, self._request)
        self._request = ""
        self.query_one("#progress").remove_class("-shown")
        self.refresh_bindings()
        await self.measurer.close()  # with the model's memory
        if result is not None:
            main = next(iter(result["metrics"].items()), ("replies", result["replies"]))
            self.notify(f"{target}: {main[0]} {number(main[1])}", title="measured")
        self.action_reload()

    @work(group="cancel")
    async def action_cancel(self) -> None:
        if self._request:
            await self.measurer.cancel(self._request)

    def _progress(self, told: dict[str, Any]) -> None:
        done, total = told.get("done", 0), told.get("total", 0)
        bar = self.query_one("#progress", Static)
        bar.add_class("-shown")
        length = 20
        full = round(length * done / total) if total else 0
        counted = f" {done:,} of {total:,}" if total else ""
        bar.update(
            Content.assemble(
                (f"{told.get('target', '')}  ", "$text"),
                ("━" * full, "$accent"),
                ("─" * (length - full), "$primary 50%"),
                f"  {told.get('stage', '')}{counted}",
                ("  x stops it", MUTED),
            )
        )

    # ── the worker ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, worker: Worker, question: str, arguments: dict[str, Any], request: str = "") -> Any:
        """The worker's answer, or None after showing why there is none."""
        try:
            return await worker.ask(question, arguments, request)
        except ProblemError as error:
            self._trouble(error.problem)
            return None

    def _trouble(self, problem: Problem) -> None:
        if not self.is_mounted:
            return
        text = "\n".join(part for part in (problem.cause, problem.hint and f"→ {problem.hint}") if part)
        self.notify(text or " ", title=problem.title, severity="error", timeout=8, markup=False)

    def _place(self, text: str) -> None:
        self.query_one("#place", Static).update(Content(text), layout=False)

    def _show(self, view: str) -> None:
        self.view = view
        for each in ("none", "list", "replies", "compared"):
            self.set_class(each == view, f"-{each}")
        self.refresh_bindings()


def _figure(value: float | None, is_best: bool) -> Content:
    if value is None:
        return Content.styled("–", MUTED)
    return Content.styled(f"{number(value)} {BEST}", "bold $success") if is_best else Content(number(value))
