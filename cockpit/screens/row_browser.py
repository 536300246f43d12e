"""Browsing the rows of a data set with the data worker: fetching them, showing them in several ways, searching."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from textual import work
from textual.widgets import Static

from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.widgets import row_view
from cockpit.widgets.prompt import Prompt
from engine.protocol.messages import Problem, ProblemError, ServiceEvent

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

PAGE = 20
"""Rows fetched at once."""
MAX_PAGES = 50
"""Pages kept in memory."""
EXPANDED = "expanded"
"""The part with the rows that an expansion made."""
REJECTED = "rejected"
"""The part with the bad rows."""
UNDECIDED = "is:undecided"
"""The search condition for expanded rows without a decision."""
NEEDING_ROWS = frozenset({"move", "go_to", "tokens", "batch", "part", "find", "run", "facts", "count"})
"""Actions that are not offered before data are open."""
VIEWS = ("conversation", "tokens", "text", "raw")
"""Ways to show a row, in the order in which `t` goes through them."""
QUESTIONS = {"tokens": "tokens", "text": "rendered"}
"""View -> what the worker is asked for it."""
ANSWERS = " answers"
"""Where a row keeps the answers, by view. No column is called so, and neither is what a row is made of."""


class RowBrowserScreen(CockpitScreen):
    """Shows one row, or one batch, of the current part. Subclasses open a data set and give the widgets `#place`,
    `#row` with `#content`, and `#side` with `#facts`."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = ServiceClient(self.app, "data")
        self.request = ""
        """The question that is being answered; empty when there is none."""
        self.data_name = ""
        self.summary: dict[str, Any] = {}
        self.stats: dict[str, dict[str, Any]] = {}
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.part, self.index = "train", 0
        self.totals: dict[str, int] = {}
        """Rows of each part, or of its search result."""
        self.queries: dict[str, str] = {}
        """The search in each part."""
        self.changed = False
        """Whether decisions were made after the sources were read."""
        self.view = "conversation"
        self.step, self.batches = 1, 1
        """The number of the batch on the screen, and how many there are."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "part" and len(self._list_parts()) < 2:
            return False
        return action not in NEEDING_ROWS or bool(self.summary)

    async def on_unmount(self) -> None:
        await self.worker.close()

    # ── the worker ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, question: str, arguments: dict[str, Any]) -> Any:
        """The worker's answer, or None after showing what went wrong."""
        request = self.request = uuid.uuid4().hex
        try:
            return await self.worker.ask(question, arguments, request)
        except ProblemError as error:
            if error.problem.code == "service.nothing_open" and self.summary:
                self.read_again()  # the worker has ended, and this is the next one
            else:
                self.show_problem(error.problem)
            return None
        finally:
            if self.request == request:  # ignore events of it that are still under way
                self.request = ""

    def read_again(self) -> None:
        """Open the same data set in a new worker."""
        raise NotImplementedError

    def receive(self, state: AppState, body: object) -> None:
        if isinstance(body, ServiceEvent) and body.request == self.request and body.kind == "progress":
            done, total, phase = (body.data.get(key, 0) for key in ("done", "total", "phase"))
            self.show_status(
                f"{phase or 'reading'} … {done / total:.0%}" if total else tr("reading …"), tr("Esc stops")
            )

    async def fetch_row(self, part: str, index: int) -> dict[str, Any] | None:
        """The row, fetched with its page when it is not here yet."""
        if (part, index) not in self.rows:
            start = index // PAGE * PAGE
            answer = await self.ask("rows", {"part": part, "start": start, "count": PAGE})
            if answer is None:
                return None
            if len(self.rows) > MAX_PAGES * PAGE:  # rows that were passed are read again rather than kept
                self.rows.clear()
            self.rows |= {(part, row["index"]): row for row in answer["rows"]}
        return self.rows.get((part, index))

    async def reread(self) -> bool:
        """Have the worker read again what decisions have changed. Returns whether it could."""
        self.show_status(tr("reading …"))
        summary = await self.ask("reread", {})
        if summary is None:
            return False
        self.changed = False
        self.summary = summary
        self.totals |= {part: rows for part, rows in summary["parts"].items() if part != EXPANDED}
        self.queries = {part: query for part, query in self.queries.items() if part == EXPANDED}
        self.index = min(self.index, max(self.totals[self.part] - 1, 0))
        self.rows.clear()
        self.stats.clear()
        self.show_facts()
        return True

    # ── showing ────────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="row")
    async def show_row(self) -> None:
        await self.show_current()

    async def show_current(self) -> None:
        """Show the current row or batch, after fetching what is not here yet."""
        if self.view == "batch":
            await self._show_batch()
            return
        if self.changed and self.part != EXPANDED and not await self.reread():
            return
        part, index, view = self.part, self.index, self.view if self.part != REJECTED else "conversation"
        if not self.totals.get(part):
            self.show_content(self._explain_empty(part))
            self.show_status(part, self.queries.get(part, ""))
            return
        row = await self.fetch_row(part, index)
        if row is None:
            return
        answers = row.setdefault(ANSWERS, {})
        if view in QUESTIONS and answers.get(view) is None:
            answers[view] = await self.ask(QUESTIONS[view], {"part": part, "index": index})
        if (part, index) != (self.part, self.index) or answers.get(view, row) is None:
            return
        counts = self._show_view(row, view)
        if part == EXPANDED:
            self._update("#facts", row_view.origin(row, self.summary["decisions"]))
        where = f"{row['file'].rpartition('/')[2]}:{row['line']}" if row.get("file") else ""
        found = tr("found by {queries}", queries=self.queries[part]) if part in self.queries else ""
        decision = str(row.get("decision", ""))
        after = (
            tr("after {shown}", shown=self.summary["shown"]) if self.summary.get("shown") and part != EXPANDED else ""
        )
        name = f"{part} {after}".strip()
        self.show_status(
            name,
            tr("row {index:,} of {totals:,}", index=index + 1, totals=self.totals[part]),
            decision,
            found,
            counts,
            where,
        )

    def _show_view(self, row: dict[str, Any], view: str) -> str:
        """Show a row in one of `VIEWS`. Returns the token counts, if the view has any."""
        match view:
            case "tokens":
                tokens = row[ANSWERS]["tokens"]
                self.show_content(
                    row_view.replies(tokens["parts"]) if "parts" in tokens else row_view.tokens(tokens["pieces"])
                )
                cut = tr(", {cut} cut", cut=tokens["cut"]) if tokens.get("cut") else ""
                return tr(
                    "{tokens} tokens, {trained} trained{cut}",
                    tokens=tokens["tokens"],
                    trained=tokens["trained"],
                    cut=cut,
                )
            case "text":
                self.show_content(row_view.rendered(row[ANSWERS]["text"]))
            case "raw":
                self.show_content(Content(row["raw"]))
            case _:
                self.show_content(row_view.conversation(row))
        return ""

    def _explain_empty(self, part: str) -> Content:
        """Why a part shows no row, and what to do."""
        if part == EXPANDED and self.queries.get(part) == UNDECIDED:
            return Content(tr("Every row has a decision.\n\nf shows all of them; v shows the rows that are kept."))
        if part in self.queries:
            return Content(
                tr(
                    "No row of {part} matches: {queries}\n\n/ searches again; an empty line shows all.",
                    part=part,
                    queries=self.queries[part],
                )
            )
        if part == REJECTED:
            return Content(tr("No row is rejected.\n\nv shows the training rows."))
        return Content(
            tr(
                "The profile has no {part} rows.\n"
                "\n"
                "v shows the next part; data.{part} in the profile names its sources.",
                part=part,
            )
        )

    async def _show_batch(self) -> None:
        batch = await self.ask("batch", {"step": self.step})
        if batch is None or self.view != "batch":
            return
        self.show_content(row_view.batch(batch))
        share = tr("{trained:.0%} trained", trained=batch["trained"] / batch["tokens"]) if batch["tokens"] else ""
        self.batches = batch["steps"]
        self.show_status(
            tr("batch of step {step:,} of {steps:,}", step=batch["step"], steps=batch["steps"]),
            tr("{tokens:,} tokens, {share}", tokens=batch["tokens"], share=share),
        )

    def show_content(self, content: Content) -> None:
        self._update("#content", content)

    def _update(self, selector: str, content: Content, *, layout: bool = True) -> None:
        """Update a widget, if it is there still: the worker may answer while the screen is being removed."""
        for widget in self.query(selector).results(Static):
            widget.update(content, layout=layout)

    def show_facts(self) -> None:
        """Show the facts of the data. Expanded rows show their own: what each was made from."""
        if self.part != EXPANDED:
            self._update("#facts", row_view.facts(self.summary, self.stats))

    def show_status(self, *facts: str) -> None:
        line = Content.assemble(
            (self.data_name or tr("Data"), "bold"), (f"  {' · '.join(filter(None, facts))}", "$text-muted")
        )
        self._update("#place", line, layout=False)

    def show_problem(self, problem: Problem) -> None:
        hint = f"\n\n→ {tr_engine(problem.hint)}" if problem.hint else ""
        self.show_content(
            Content.assemble(
                (f"✗ {tr_engine(problem.title)}\n", "bold $text-error"), tr_engine(problem.cause), (hint, "$accent")
            )
        )
        self.show_status("✗")

    # ── moving and searching ───────────────────────────────────────────────────────────────────────────────────────

    def action_move(self, by: int) -> None:
        self.action_go_to(max(0, (self.step - 1 if self.view == "batch" else self.index) + by))

    def action_go_to(self, index: int) -> None:
        """Go to row (or batch) `index` of this part, from 0; -1 is the last."""
        if not self.summary:
            return
        if self.view == "batch":
            self.step = self.batches if index < 0 else min(index + 1, self.batches)
        else:
            last = max(self.totals[self.part] - 1, 0)
            self.index = last if index < 0 else min(index, last)
        self.query_one("#row").scroll_home(animate=False)
        self.show_row()

    def action_scroll(self, by: int) -> None:
        side = self.has_class("-facts") and self.has_class("-narrow")
        self.query_one("#side" if side else "#row").scroll_relative(y=by, animate=False)

    def action_tokens(self) -> None:
        """Show the row in the next way."""
        at = VIEWS.index(self.view) + 1 if self.view in VIEWS else 0
        self.set_view(VIEWS[at % len(VIEWS)])

    def action_batch(self) -> None:
        """Show real batches, or the rows again."""
        self.set_view("conversation" if self.view == "batch" else "batch")

    def set_view(self, view: str) -> None:
        self.view = view
        self.set_class(view in ("tokens", "batch"), "-tokens")
        if self.summary:
            self.query_one("#row").scroll_home(animate=False)
            self.show_row()

    def _list_parts(self) -> list[str]:
        """The parts that have rows, and the current one."""
        return [part for part in self.summary.get("parts", ()) if self.summary["parts"][part] or part == self.part]

    def action_part(self) -> None:
        """Go to the next part that has rows."""
        if parts := self._list_parts():
            self.select_part(parts[(parts.index(self.part) + 1) % len(parts)])
            self.view = "conversation" if self.view == "batch" else self.view
            self.action_go_to(0)

    def select_part(self, part: str) -> None:
        self.part = part
        self.set_class(part == EXPANDED, "-expanded")
        self.show_facts()
        self.refresh_bindings()

    def action_facts(self) -> None:
        """On a narrow screen, show the facts in place of the row."""
        self.toggle_class("-facts")

    @opens_dialog
    @work(exclusive=True, group="find")
    async def action_find(self) -> None:
        if not self.summary:
            return
        hint = tr("words, column=value, source:name, chars>2000, tokens<20, or a number")
        answer = await self.app.push_screen_wait(
            Prompt(tr("Find in {part}", part=self.part), hint, self.queries.get(self.part, ""))
        )
        if answer is None:
            return
        if answer.strip().isdigit():
            self.action_go_to(max(int(answer) - 1, 0))
            return
        await self.search(answer)

    async def search(self, query: str) -> None:
        """Show the rows of this part that match; an empty query shows all."""
        found = await self.ask("narrow", {"part": self.part, "query": query})
        if found is None:
            return
        self.queries.pop(self.part, None)
        if query.strip():
            self.queries[self.part] = query.strip()
        self.totals[self.part] = found["total"]
        self.rows.clear()
        self.set_view("conversation" if self.view == "batch" else self.view)
        self.action_go_to(0)
