"""The replies of an evaluation, the worst first: a list, and beside it the selected reply with its reference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.evaluation_results import MUTED, common_prefix_length, evaluation_title
from cockpit.state.formatting import counted, format_number
from cockpit.state.reply_format import parse_reply
from cockpit.widgets.reply_views import views

PAGE = 200
"""Replies fetched at once."""
FILTERS: dict[bool | None, str] = {None: "all", True: "passed", False: "failed"}
"""The worker's value of each filter -> its name, in the order in which the key goes through them."""
VERDICTS: dict[bool | None, str] = {True: "passed", False: "failed"}


Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]


class EvaluationReplies(Horizontal):
    """`ask` sends a question to the evaluation service and returns its answer, or None after showing what went
    wrong."""

    DEFAULT_CSS = """
    EvaluationReplies { height: 1fr; }
    EvaluationReplies #rows { width: 44; height: 1fr; }
    EvaluationReplies #reply { width: 1fr; height: 1fr; border-left: solid $primary; padding: 0 1; }
    EvaluationReplies #reply > Static, EvaluationReplies .side > Static { height: auto; }
    EvaluationReplies .beside { height: auto; }
    EvaluationReplies .side { width: 1fr; height: auto; padding: 0 1 0 0; }
    .-narrow EvaluationReplies #rows { width: 30; }
    .-narrow EvaluationReplies .beside { layout: vertical; }
    .-narrow EvaluationReplies .side { width: 100%; }
    """

    def __init__(self, ask: Ask, *, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self._ask = ask
        self._evaluation: dict[str, Any] = {}
        self._page: dict[str, Any] = {"replies": [], "total": 0, "scores": [], "by": ""}
        self._by: str | None = None
        self._filter: bool | None = None

    def compose(self) -> ComposeResult:
        yield DataTable(id="rows", cursor_type="row", zebra_stripes=True)
        yield VerticalScroll(id="reply", can_focus=False)

    @property
    def headline(self) -> str:
        page = self._page
        cut = tr(", the first {PAGE}", PAGE=PAGE) if page["total"] > PAGE else ""
        title, replies = evaluation_title(self._evaluation), f"{counted(page['total'], 'reply')}{cut}"
        return tr(
            "{title}  ·  {replies}  ·  {FILTERS}  ·  worst {by} first",
            title=title,
            replies=replies,
            FILTERS=FILTERS[self._filter],
            by=page["by"],
        )

    async def open(self, evaluation: dict[str, Any]) -> bool:
        """Show another evaluation's replies. Returns False when they cannot be fetched."""
        self._evaluation, self._by, self._filter = evaluation, None, None
        return await self._fetch()

    async def next_sort(self) -> None:
        """Sort by the next score."""
        names = self._page["scores"]
        if names:
            at = names.index(self._page["by"]) if self._page["by"] in names else -1
            self._by = names[(at + 1) % len(names)]
            await self._fetch()

    async def next_filter(self) -> None:
        """Show all replies, those that passed, or those that failed."""
        filters = list(FILTERS)
        self._filter = filters[(filters.index(self._filter) + 1) % len(filters)]
        await self._fetch()

    async def _fetch(self) -> bool:
        arguments = {
            "directory": self._evaluation["directory"],
            "start": 0,
            "count": PAGE,
            "by": self._by,
            "passed": self._filter,
        }
        page = await self._ask("replies", arguments)
        if page is None:
            return False
        self._page = page
        rows = self.query_one("#rows", DataTable)
        rows.clear(columns=True)
        by = max(len(page["by"]), 6)
        start = common_prefix_length([each["prompt"] for each in page["replies"]])
        for heading, width in (("row", 4), (page["by"], by), ("prompt", 60)):
            rows.add_column(Text(heading), width=width, key=heading)
        for each in page["replies"]:
            value, failed = each["scores"].get(page["by"]), each["passed"] is False
            rows.add_row(
                Content(f"{each['row'] + 1:>4}"),
                Content.styled(f"{'–' if value is None else format_number(value):>{by}}", "$error" if failed else ""),
                Content(" ".join(each["prompt"][start:].split())),
            )
        if not page["replies"]:
            await self.query_one("#reply").remove_children()
        return True

    @on(DataTable.RowHighlighted, "#rows")
    def _row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if 0 <= event.cursor_row < len(self._page["replies"]):
            self._show_reply(self._page["replies"][event.cursor_row]["row"])

    @work(exclusive=True)
    async def _show_reply(self, row: int) -> None:
        """Show a whole reply, its reference beside it."""
        reply = await self._ask("reply", {"directory": self._evaluation["directory"], "row": row})
        if reply is None:
            return
        asked, reference = reply.get("asked"), reply.get("reference")
        text = asked[-1]["content"] if isinstance(asked, list) and asked else str(asked or "")
        thinking = f"<think>{reply['thinking']}</think>\n" if reply.get("thinking") else ""
        sides = [_side("reply", _reply_facts(reply), thinking + reply["reply"])]
        if reference is not None:
            sides.append(
                _side("reference", tr("the same") if reply["reply"].strip() == reference.strip() else "", reference)
            )
        scores = [f"{name} {format_number(value)}" for name, value in reply.get("scores", {}).items()]
        panel = self.query_one("#reply", VerticalScroll)
        async with self.batch():
            await panel.remove_children()
            await panel.mount(
                Static(Content.assemble((tr("row {row}  prompt  ", row=row + 1), MUTED), text)),
                Static(Content.styled("   ".join(scores), "$secondary")),
                Horizontal(*sides, classes="beside"),
            )
        panel.scroll_home(animate=False)


def _side(name: str, note: str, text: str) -> Vertical:
    """A text shown by its format, under a heading."""
    heading = Static(Content.assemble((f"── {name} ", "bold $accent"), (note, MUTED)))
    return Vertical(heading, *views(parse_reply(text)), classes="side")


def _reply_facts(reply: dict[str, Any]) -> str:
    """Facts about a reply, for its heading."""
    parts = [counted(reply["tokens"], "token") if reply.get("tokens") is not None else ""]
    parts += [tr("did not end") if reply.get("stopped") is False else "", VERDICTS.get(reply.get("passed"), "")]
    return " · ".join(filter(None, parts))
