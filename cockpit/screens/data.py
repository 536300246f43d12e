"""The data screen: what a profile would train on, row by row, as a conversation and as the tokens that are trained."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from cockpit.profiles import profile_files
from cockpit.screens.base import CockpitScreen
from cockpit.service import Worker
from cockpit.widgets import row_view
from cockpit.widgets.picker import Choice, Picker
from cockpit.widgets.prompt import Prompt
from engine.protocol.messages import Problem, ProblemError, ServiceEvent

if TYPE_CHECKING:
    from cockpit.state import State

WINDOW = 20
"""Rows fetched at once."""
COUNTED = 5000
"""Rows up to which tokens are counted without being asked for."""
EMPTY = Content.from_markup(
    "[bold $text]No data open.[/]\n\n[$accent]o[/] picks a profile and shows the rows it would train on.\n"
    "To use your own JSONL: [$accent]3[/] opens Profile; save a copy of a built-in one and set data.train."
)


class DataScreen(CockpitScreen):
    HELP_TEXT = """
    What a profile would train on. Tokens that are trained are bold and underlined; the others are context only.
    A row that cannot be used is rejected and named with its file and line; training goes on without it.
    """
    DEFAULT_CSS = """
    DataScreen #place { height: 1; padding: 0 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    DataScreen #body { height: 1fr; }
    DataScreen #row { width: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    DataScreen #side { width: 42; border-left: solid $primary; padding: 0 1; scrollbar-size-vertical: 1; }
    DataScreen #legend { height: 1; padding: 0 1; display: none; }
    DataScreen.-tokens #legend { display: block; }
    DataScreen.-narrow #side { display: none; }
    DataScreen.-narrow.-facts #side { display: block; width: 1fr; border-left: none; }
    DataScreen.-narrow.-facts #main { display: none; }
    """
    BINDINGS = [
        Binding("o", "pick", "Open"),
        Binding("left,h", "move(-1)", "Row", key_display="←→"),
        Binding("right,l", "move(1)", "Next row", show=False),
        Binding("pageup", "move(-10)", "Ten back", show=False),
        Binding("pagedown", "move(10)", "Ten on", show=False),
        Binding("home", "go_to(0)", "First row", show=False),
        Binding("end", "go_to(-1)", "Last row", show=False),
        Binding("j,down", "scroll(2)", "Down", show=False),
        Binding("k,up", "scroll(-2)", "Up", show=False),
        Binding("t", "tokens", "Tokens"),
        Binding("v", "part", "Split"),
        Binding("s", "facts", "Facts"),
        Binding("n", "count", "Count tokens", show=False),
        Binding("slash", "find", "Go to", key_display="/"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(self.app, "data")
        self.profile = ""
        self.summary: dict[str, Any] = {}
        self.stats: dict[str, dict[str, Any]] = {}
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.part, self.index = "train", 0
        self.totals = {"train": 0, "validation": 0}
        self.request = ""

    def compose_body(self) -> ComposeResult:
        yield Static(id="place")
        with Horizontal(id="body"):
            with Vertical(id="main"):
                yield Static(row_view.LEGEND, id="legend")
                with VerticalScroll(id="row"):
                    yield Static(EMPTY, id="content")
            with VerticalScroll(id="side"):
                yield Static(id="facts")

    def on_mount(self) -> None:
        self._place("no profile open")
        self.query_one("#row").focus()

    async def on_unmount(self) -> None:
        await self.worker.close()

    # ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="pick")
    async def action_pick(self) -> None:
        files = await asyncio.to_thread(profile_files, self.app.home, Path.cwd())
        choices = [Choice(str(file.path), f"{file.place} · {file.description}") for file in files]
        path = await self.app.push_screen_wait(
            Picker("Data of which profile", "a name on the list, or a path", choices)
        )
        if path:
            self.open(Path(path).expanduser().absolute())

    @work(exclusive=True, group="open")
    async def open(self, path: Path) -> None:
        """Have the worker read the profile's sources, then show the first row and count tokens."""
        try:
            text = await asyncio.to_thread(path.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._trouble(Problem(title=f"cannot read {path}", cause=str(error)))
            return
        self.profile, self.summary, self.stats, self.rows = path.stem, {}, {}, {}
        self._place("reading …")
        summary = await self._ask("open", {"profile": text, "directory": str(path.parent)})
        if summary is None:
            return
        self.summary, self.part, self.index = summary, "train", 0
        self.totals = {
            part: sum(source["rows"] for source in summary["sources"] if source["part"] == part) for part in self.totals
        }
        self._show_facts()
        await self._show()
        if summary["rows"] <= COUNTED:
            await self._count()

    async def _count(self) -> None:
        for part, rows in self.totals.items():
            if rows and (numbers := await self._ask("stats", {"part": part})) is not None:
                self.stats[part] = numbers
                self._show_facts()
        await self._show()

    async def _ask(self, question: str, arguments: dict[str, Any]) -> Any:
        """The worker's answer, or None after showing why there is none."""
        request = self.request = uuid.uuid4().hex
        try:
            return await self.worker.ask(question, arguments, request)
        except ProblemError as error:
            self._trouble(error.problem)
            return None
        finally:
            if self.request == request:  # what is still on its way about it is old news
                self.request = ""

    def receive(self, state: State, body: object) -> None:
        if isinstance(body, ServiceEvent) and body.request == self.request and body.kind == "progress":
            done, total = body.data.get("done", 0), body.data.get("total", 0)
            self._place(f"reading … {done / total:.0%}" if total else "reading …")

    # ── showing ────────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="row")
    async def show_row(self) -> None:
        await self._show()

    async def _show(self) -> None:
        """Show the present row, after fetching what is not here yet."""
        part, index = self.part, self.index
        if not self.totals[part]:
            self._content(
                Content(
                    f"The profile has no {part} rows.\n\nv shows the other part; data.{part} in the profile names its sources."
                )
            )
            self._place(part)
            return
        row = await self._row(part, index)
        tokens = self.has_class("-tokens")
        if row is not None and tokens and "tokens" not in row:
            row["tokens"] = await self._ask("tokens", {"part": part, "index": index})
        if row is None or (part, index) != (self.part, self.index) or (tokens and row["tokens"] is None):
            return
        counts = ""
        if tokens:
            counted = row["tokens"]
            counts = f"{counted['tokens']} tokens, {counted['trained']} trained"
            counts += f", {counted['cut']} cut" if counted.get("cut") else ""
            self._content(row_view.tokens(counted["pieces"]))
        else:
            self._content(row_view.conversation(row))
        self._place(part, f"row {index + 1:,} of {self.totals[part]:,}", counts)

    async def _row(self, part: str, index: int) -> dict[str, Any] | None:
        if (part, index) not in self.rows:
            start = index // WINDOW * WINDOW
            answer = await self._ask("rows", {"part": part, "start": start, "count": WINDOW})
            if answer is None:
                return None
            if len(self.rows) > 50 * WINDOW:  # what was leafed through is read again rather than kept
                self.rows.clear()
            self.rows |= {(part, row["index"]): row for row in answer["rows"]}
        return self.rows.get((part, index))

    def _content(self, content: Content) -> None:
        self.query_one("#content", Static).update(content)

    def _show_facts(self) -> None:
        self.query_one("#facts", Static).update(row_view.facts(self.summary, self.stats))

    def _place(self, *facts: str) -> None:
        line = Content.assemble(
            (self.profile or "Data", "bold"), (f"  {' · '.join(filter(None, facts))}", "$text-muted")
        )
        self.query_one("#place", Static).update(line, layout=False)

    def _trouble(self, problem: Problem) -> None:
        hint = f"\n\n→ {problem.hint}" if problem.hint else ""
        self._content(Content.assemble((f"✗ {problem.title}\n", "bold $text-error"), problem.cause, (hint, "$accent")))
        self._place("✗")

    # ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_move(self, by: int) -> None:
        self.action_go_to(max(0, self.index + by))

    def action_go_to(self, index: int) -> None:
        """Row `index` of this part, from 0; -1 is the last."""
        last = max(self.totals[self.part] - 1, 0)
        self.index = last if index < 0 else min(index, last)
        if self.summary:
            self.query_one("#row").scroll_home(animate=False)
            self.show_row()

    def action_scroll(self, by: int) -> None:
        side = self.has_class("-facts") and self.has_class("-narrow")
        self.query_one("#side" if side else "#row").scroll_relative(y=by, animate=False)

    def action_tokens(self) -> None:
        self.toggle_class("-tokens")
        if self.summary:
            self.show_row()

    def action_part(self) -> None:
        self.part = "validation" if self.part == "train" else "train"
        self.action_go_to(0)

    def action_facts(self) -> None:
        """On a narrow screen the facts take the row's place."""
        self.toggle_class("-facts")

    @work(exclusive=True, group="open")
    async def action_count(self) -> None:
        if self.summary:
            await self._count()

    @work(exclusive=True, group="find")
    async def action_find(self) -> None:
        if not self.summary:
            return
        answer = await self.app.push_screen_wait(Prompt("Go to row", f"1 to {self.totals[self.part]:,}"))
        if answer and answer.isdigit():
            self.action_go_to(max(int(answer) - 1, 0))
        elif answer:
            self.notify(f"{answer!r} is not a row number", severity="error", markup=False)
