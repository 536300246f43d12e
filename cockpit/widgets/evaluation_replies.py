"""The replies of an evaluation, the worst first: a list, and beside it the whole of the one under the cursor with its reference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static

from cockpit.state.evaluation_results import MUTED, shared, title
from cockpit.state.formatting import number
from cockpit.state.reply_format import shape
from cockpit.widgets.reply_views import views

PAGE = 200
"""Replies fetched at once."""
KEPT: dict[bool | None, str] = {None: "all", True: "passed", False: "failed"}
"""What the filter goes through, by the worker's word."""
VERDICTS: dict[bool | None, str] = {True: "passed", False: "failed"}


class Scored(Horizontal):
    """`ask` puts a question to the evaluation service: its answer, or None after it has shown why there is none."""

    DEFAULT_CSS = """
    Scored { height: 1fr; }
    Scored #rows { width: 44; height: 1fr; }
    Scored #reply { width: 1fr; height: 1fr; border-left: solid $primary; padding: 0 1; }
    Scored #reply > Static, Scored .side > Static { height: auto; }
    Scored .beside { height: auto; }
    Scored .side { width: 1fr; height: auto; padding: 0 1 0 0; }
    .-narrow Scored #rows { width: 30; }
    .-narrow Scored .beside { layout: vertical; }
    .-narrow Scored .side { width: 100%; }
    """

    def __init__(self, ask: Callable[[str, dict[str, Any]], Awaitable[Any]], *, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self._ask = ask
        self._evaluation: dict[str, Any] = {}
        self._page: dict[str, Any] = {"replies": [], "total": 0, "scores": [], "by": ""}
        self._by: str | None = None
        self._kept: bool | None = None

    def compose(self) -> ComposeResult:
        yield DataTable(id="rows", cursor_type="row", zebra_stripes=True)
        yield VerticalScroll(id="reply", can_focus=False)

    @property
    def headline(self) -> str:
        page = self._page
        cut = f", the first {PAGE}" if page["total"] > PAGE else ""
        return f"{title(self._evaluation)}  ·  {page['total']} replies{cut}  ·  {KEPT[self._kept]}  ·  worst {page['by']} first"

    async def open(self, evaluation: dict[str, Any]) -> bool:
        """Show another evaluation's replies; False where they cannot be had."""
        self._evaluation, self._by, self._kept = evaluation, None, None
        return await self._fetch()

    async def resort(self) -> None:
        """By the next score."""
        names = self._page["scores"]
        if names:
            at = names.index(self._page["by"]) if self._page["by"] in names else -1
            self._by = names[(at + 1) % len(names)]
            await self._fetch()

    async def refilter(self) -> None:
        """All, those that passed, those that failed."""
        kept = list(KEPT)
        self._kept = kept[(kept.index(self._kept) + 1) % len(kept)]
        await self._fetch()

    async def _fetch(self) -> bool:
        asked = {
            "directory": self._evaluation["directory"],
            "start": 0,
            "count": PAGE,
            "by": self._by,
            "passed": self._kept,
        }
        page = await self._ask("replies", asked)
        if page is None:
            return False
        self._page = page
        rows = self.query_one("#rows", DataTable)
        rows.clear(columns=True)
        by = max(len(page["by"]), 6)
        start = shared([each["prompt"] for each in page["replies"]])
        for heading, width in (("row", 4), (page["by"], by), ("asked", 60)):
            rows.add_column(heading, width=width, key=heading)
        for each in page["replies"]:
            value, failed = each["scores"].get(page["by"]), each["passed"] is False
            rows.add_row(
                Content(f"{each['row'] + 1:>4}"),
                Content.styled(f"{'–' if value is None else number(value):>{by}}", "$error" if failed else ""),
                Content(" ".join(each["prompt"][start:].split())),
            )
        if not page["replies"]:
            await self.query_one("#reply").remove_children()
        return True

    @on(DataTable.RowHighlighted, "#rows")
    def _moved(self, event: DataTable.RowHighlighted) -> None:
        if 0 <= event.cursor_row < len(self._page["replies"]):
            self._read(self._page["replies"][event.cursor_row]["row"])

    @work(exclusive=True)
    async def _read(self, row: int) -> None:
        """The whole of a reply, its reference beside it."""
        told = await self._ask("reply", {"directory": self._evaluation["directory"], "row": row})
        if told is None:
            return
        asked, reference = told.get("asked"), told.get("reference")
        text = asked[-1]["content"] if isinstance(asked, list) and asked else str(asked or "")
        sides = [_side("reply", _how(told), told["reply"])]
        if reference is not None:
            sides.append(
                _side("reference", "the same" if told["reply"].strip() == reference.strip() else "", reference)
            )
        scores = [f"{name} {number(value)}" for name, value in told.get("scores", {}).items()]
        panel = self.query_one("#reply", VerticalScroll)
        async with self.batch():
            await panel.remove_children()
            await panel.mount(
                Static(Content.assemble((f"row {row + 1}  asked  ", MUTED), text)),
                Static(Content.styled("   ".join(scores), "$secondary")),
                Horizontal(*sides, classes="beside"),
            )
        panel.scroll_home(animate=False)


def _side(name: str, note: str, text: str) -> Vertical:
    """A text as what it is, under its heading."""
    heading = Static(Content.assemble((f"── {name} ", "bold $accent"), (note, MUTED)))
    return Vertical(heading, *views(shape(text)), classes="side")


def _how(told: dict[str, Any]) -> str:
    """What is known of a reply beside its text."""
    parts = [f"{told['tokens']} tokens" if told.get("tokens") is not None else ""]
    parts += ["did not end" if told.get("stopped") is False else "", VERDICTS.get(told.get("passed"), "")]
    return " · ".join(filter(None, parts))
