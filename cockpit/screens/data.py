"""The data screen: what a profile would train on, row by row, as a conversation and as the tokens that are trained."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from cockpit.connection.service_client import Worker
from cockpit.connection.submission import keys
from cockpit.profiles.files import profile_files
from cockpit.screens.review import EXPANDED, UNDECIDED, DecidingScreen
from cockpit.widgets import row_view
from cockpit.widgets.picker import Choice, Picker
from cockpit.widgets.prompt import Prompt
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, ServiceEvent
from engine.protocol.profile import ProfileError, parse

if TYPE_CHECKING:
    from cockpit.state.app_state import State

WINDOW = 20
"""Rows fetched at once."""
COUNTED = 5000
"""Rows up to which tokens are counted without being asked for."""
REJECTED = "rejected"
"""The part of bad rows."""
SOURCES = "sources"
"""The choice that shows the rows before all stages."""
STAGES = {
    "expand": "asks the service for new rows; what it answered before is kept",
    "validate": "bad rows out, each with its reason",
    "clean": "text repaired, rows that the rules refuse out",
    "dedup": "equal and nearly equal rows out",
    "split": "validation and test rows set apart",
    "balance": "the values of a column evened out",
    "tokenize": "all of them, as a run does first",
}
VIEWS = ("conversation", "tokens", "text", "raw")
"""How a row is shown, in the order of the key."""
EMPTY = Content.from_markup(
    "[bold $text]No data open.[/]\n\n[$accent]o[/] picks a profile and shows the rows it would train on, "
    "or opens a data file or folder by its path.\n"
    "To train on your own: [$accent]3[/] opens Profile; save a copy of a built-in one and set data.train."
)
PROFILES = (".yaml", ".yml")
"""Suffixes of profiles; whatever else is opened is data, but JSON that reads as a profile."""
LONGEST_PROFILE = 100_000
"""Bytes."""


class DataScreen(DecidingScreen):
    HELP_TEXT = """
    What a profile would train on. `t` shows a row as a conversation, as tokens (those that are trained are bold and underlined), as
    the text that training and chat write, and as it stands in its file. `b` shows real batches. A row that cannot be used is
    rejected and named with its file and line; training goes on without it. `v` goes on to the held-out rows and to the rejected ones.
    `/` finds rows: words and "phrases" in them, `column=value`, `source:name`, `chars>2000`, `tokens<20`,
    `is:undecided`; a number goes to that row.
    Rows that a service made are a part of their own: `a` accepts a row, `x` drops it, `u` takes that back, `f` shows only those undecided;
    beside it stands what it was made from. What is dropped is not trained on, also after the expansion goes on.
    `r` runs the stages up to one that you choose, as a run does first, and shows the rows that leave it and those that it rejects; `r` and
    `sources` shows them as they were read. What was done before comes from the cache; Esc stops, and what is done by then is kept.
    `n` counts the tokens of large sets and of expanded rows, which are not counted by themselves.
    """
    DEFAULT_CSS = """
    DataScreen #place { height: 1; padding: 0 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    DataScreen #body { height: 1fr; }
    DataScreen #row { width: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    DataScreen #side { width: 42; border-left: solid $primary; padding: 0 1; scrollbar-size-vertical: 1; }
    DataScreen #legend { height: 1; padding: 0 1; display: none; }
    DataScreen.-tokens #legend { display: block; }
    DataScreen.-expanded #side { width: 45%; }
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
        Binding("t", "tokens", "View"),
        Binding("b", "batch", "Batches"),
        Binding("v", "part", "Part"),
        Binding("slash", "find", "Find", key_display="/"),
        Binding("r", "run", "Run stages"),
        Binding("s", "facts", "Facts"),
        Binding("n", "count", "Count tokens", show=False),
        Binding("escape", "stop", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(self.app, "data")
        self.profile = ""
        self.stats: dict[str, dict[str, Any]] = {}
        self.view = "conversation"
        self.step = 1
        """Of the batch that is shown, of `batches`."""
        self.batches = 1
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
            Picker(
                "Data of which profile",
                "a name on the list, or the path of a profile, a data file or a folder",
                choices,
            )
        )
        if path:
            self.open(Path(path).expanduser().absolute())

    @work(exclusive=True, group="open")
    async def open(self, path: Path) -> None:
        """Have the worker read the profile's sources, then show the first row and count tokens."""
        try:
            text, is_data = await asyncio.to_thread(_profile_of, path)
            await self.worker.need(await asyncio.to_thread(_keys, text, path, self.app.home))
        except (OSError, UnicodeDecodeError) as error:
            self._trouble(Problem(title=f"cannot read {path}", cause=str(error)))
            return
        self.profile, self.summary, self.stats, self.rows = path.stem, {}, {}, {}
        self._place("reading …")
        summary = await self.ask("open", {"profile": text, "directory": str(path.parent)})
        if summary is None:
            return
        self.forget_decisions()
        self.summary, self.index, self.step = summary, 0, 1
        self.totals, self.queries = dict(summary["parts"]), {}
        # Whoever opens the work of an expansion, and not a profile, is there to decide about its rows.
        self._enter(EXPANDED if is_data and EXPANDED in summary["parts"] else "train")
        await self._show()
        # Counting would keep the worker from taking decisions meanwhile.
        if summary["rows"] <= COUNTED and self.part != EXPANDED:
            await self._count()

    async def _count(self) -> None:
        for part, rows in self.summary["parts"].items():
            if (
                rows
                and part not in (EXPANDED, REJECTED)
                and (numbers := await self.ask("stats", {"part": part})) is not None
            ):
                self.stats[part] = numbers
                self._show_facts()
        await self._show()

    async def ask(self, question: str, arguments: dict[str, Any]) -> Any:
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
            done, total, phase = (body.data.get(key, 0) for key in ("done", "total", "phase"))
            self._place(f"{phase or 'reading'} … {done / total:.0%}" if total else "reading …", "Esc stops")

    # ── showing ────────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="row")
    async def show_row(self) -> None:
        await self._show()

    async def _show(self) -> None:
        """Show the present row or batch, after fetching what is not here yet."""
        if self.view == "batch":
            await self._show_batch()
            return
        if self.changed and self.part != EXPANDED and not await self._reread():
            return
        part, index, view = self.part, self.index, self.view if self.part != REJECTED else "conversation"
        if not self.totals.get(part):
            self._content(self._nothing(part))
            self._place(part, self.queries.get(part, ""))
            return
        row = await self._row(part, index)
        if row is not None and view in ("tokens", "text") and view not in row:
            question = "tokens" if view == "tokens" else "rendered"
            row[view] = await self.ask(question, {"part": part, "index": index})
        if row is None or (part, index) != (self.part, self.index) or row.get(view, row) is None:
            return
        counts = ""
        match view:
            case "tokens":
                counted = row["tokens"]
                counts = f"{counted['tokens']} tokens, {counted['trained']} trained"
                counts += f", {counted['cut']} cut" if counted.get("cut") else ""
                self._content(
                    row_view.replies(counted["parts"]) if "parts" in counted else row_view.tokens(counted["pieces"])
                )
            case "text":
                self._content(row_view.rendered(row["text"]))
            case "raw":
                self._content(Content(row["raw"]))
            case _:
                self._content(row_view.conversation(row))
        if part == EXPANDED:
            self.query_one("#facts", Static).update(row_view.origin(row, self.summary["decisions"]))
        where = f"{row['file'].rpartition('/')[2]}:{row['line']}" if row.get("file") else ""
        found = f"found by {self.queries[part]}" if part in self.queries else ""
        decision = str(row.get("decision", ""))
        after = f"after {self.summary['shown']}" if self.summary.get("shown") and part != EXPANDED else ""
        name = f"{part} {after}".strip()
        self._place(name, f"row {index + 1:,} of {self.totals[part]:,}", decision, found, counts, where)

    def _nothing(self, part: str) -> Content:
        """Why a part shows no row, and what to do."""
        if part == EXPANDED and self.queries.get(part) == UNDECIDED:
            return Content("Every row is decided.\n\nf shows all of them; v goes on to the rows that are kept.")
        if part in self.queries:
            return Content(f"No row of {part} fits: {self.queries[part]}\n\n/ asks anew; an empty line shows all.")
        if part == REJECTED:
            return Content("No row is rejected.\n\nv shows the training rows.")
        return Content(
            f"The profile has no {part} rows.\n\nv shows the next part; data.{part} in the profile names its sources."
        )

    async def _reread(self) -> bool:
        """Have the worker read again what decisions have changed. Returns whether it could."""
        self._place("reading …")
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
        self._show_facts()
        return True

    async def _show_batch(self) -> None:
        shown = await self.ask("batch", {"step": self.step})
        if shown is None or self.view != "batch":
            return
        self._content(row_view.batch(shown))
        share = f"{shown['trained'] / shown['tokens']:.0%} trained" if shown["tokens"] else ""
        self.batches = shown["steps"]
        self._place(f"batch of step {shown['step']:,} of {shown['steps']:,}", f"{shown['tokens']:,} tokens, {share}")

    async def _row(self, part: str, index: int) -> dict[str, Any] | None:
        if (part, index) not in self.rows:
            start = index // WINDOW * WINDOW
            answer = await self.ask("rows", {"part": part, "start": start, "count": WINDOW})
            if answer is None:
                return None
            if len(self.rows) > 50 * WINDOW:  # what was leafed through is read again rather than kept
                self.rows.clear()
            self.rows |= {(part, row["index"]): row for row in answer["rows"]}
        return self.rows.get((part, index))

    def _content(self, content: Content) -> None:
        self.query_one("#content", Static).update(content)

    def _show_facts(self) -> None:
        """Those of the data; of an expanded row, what it came from is shown with it."""
        if self.part != EXPANDED:
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
        self.action_go_to(max(0, (self.step - 1 if self.view == "batch" else self.index) + by))

    def action_go_to(self, index: int) -> None:
        """Row (or batch) `index` of this part, from 0; -1 is the last."""
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
        """The next way to show a row."""
        at = VIEWS.index(self.view) + 1 if self.view in VIEWS else 0
        self._set_view(VIEWS[at % len(VIEWS)])

    def action_batch(self) -> None:
        """Real batches, and back to the rows."""
        self._set_view("conversation" if self.view == "batch" else "batch")

    def _set_view(self, view: str) -> None:
        self.view = view
        self.set_class(view in ("tokens", "batch"), "-tokens")
        if self.summary:
            self.query_one("#row").scroll_home(animate=False)
            self.show_row()

    def action_part(self) -> None:
        """The next part that has rows."""
        parts = [part for part in self.summary.get("parts", ()) if self.summary["parts"][part] or part == self.part]
        if parts:
            self._enter(parts[(parts.index(self.part) + 1) % len(parts)])
            self.view = "conversation" if self.view == "batch" else self.view
            self.action_go_to(0)

    def _enter(self, part: str) -> None:
        self.part = part
        self.set_class(part == EXPANDED, "-expanded")
        self._show_facts()
        self.refresh_bindings()

    @work(exclusive=True, group="open")
    async def action_run(self) -> None:
        """The stages of the profile up to one, as a run would do them first; what leaves that one is shown."""
        if not self.summary:
            return
        names = self.summary["stages"]
        choices = [Choice(name, STAGES[name]) for name in names]
        choices += [Choice(SOURCES, "the rows as they were read")] if self.summary.get("shown") else []
        picker = Picker("Run the stages up to", "their rows are shown then", choices, len(names) - 1)
        if picked := await self.app.push_screen_wait(picker):
            await self._run_until("" if picked == SOURCES else picked)

    async def _run_until(self, name: str) -> None:
        if self.request:  # tokens being counted: they would be counted anew
            await self.worker.cancel(self.request)
        self._place("running the stages …", "Esc stops")
        done = await self.ask("stages", {"until": name})
        if done is None:
            return
        self.changed = False
        tokenised = [_tokenised(done)] if "stats" in done else []
        self.summary |= {"done": [*done["stages"], *tokenised], "shown": name}
        self.summary |= {"parts": done["parts"], "decisions": done["decisions"]}
        self.totals, self.queries = dict(done["parts"]), {}
        self.rows.clear()
        self.stats.clear()
        self.view = "conversation" if self.view == "batch" else self.view
        self._enter(self.part if self.totals.get(self.part) else "train")
        self.action_go_to(0)
        if tokenised:
            told = f"{done['rows']:,} rows, {done['tokens']:,} tokens, {done['trained_tokens']:,} trained"
            self.notify(told, title="Prepared")
        if sum(rows for part, rows in self.totals.items() if part != REJECTED) <= COUNTED:
            await self._count()

    async def action_stop(self) -> None:
        """Esc: give up what is being asked, else leave the batches, else go back."""
        if self.request:
            await self.worker.cancel(self.request)
        elif self.view == "batch":
            self.action_batch()
        else:
            await self.app.action_back()

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
        hint = "words, column=value, source:name, chars>2000, tokens<20, or a number"
        answer = await self.app.push_screen_wait(Prompt(f"Find in {self.part}", hint, self.queries.get(self.part, "")))
        if answer is None:
            return
        if answer.strip().isdigit():
            self.action_go_to(max(int(answer) - 1, 0))
            return
        await self.narrow(answer)

    async def narrow(self, query: str) -> None:
        """Show the rows of this part that fit; an empty query shows all."""
        found = await self.ask("narrow", {"part": self.part, "query": query})
        if found is None:
            return
        self.queries.pop(self.part, None)
        if query.strip():
            self.queries[self.part] = query.strip()
        self.totals[self.part] = found["total"]
        self.rows.clear()
        self._set_view("conversation" if self.view == "batch" else self.view)
        self.action_go_to(0)


def _profile_of(path: Path) -> tuple[str, bool]:
    """A profile's text, and whether `path` is no profile but data: then it is one which trains on that and leaves all else as it comes."""
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix in PROFILES:
        return path.read_text(encoding="utf-8"), False
    if suffix == ".json" and size < LONGEST_PROFILE and is_profile(text := path.read_text(encoding="utf-8")):
        return text, False
    return json.dumps({"name": path.stem, "data": {"train": [{"source": str(path)}]}}), True


def _keys(text: str, path: Path, home: Home) -> dict[str, str]:
    """What the profile's stages need of the shell; nothing of one that does not hold, which the worker tells."""
    try:
        return keys(parse(text, path.name, path.parent, home=home))
    except ProfileError:
        return {}


def is_profile(text: str) -> bool:
    """Whether JSON is a profile rather than rows: an object whose `data` names what to train on."""
    try:
        return "train" in json.loads(text)["data"]
    except (ValueError, KeyError, TypeError):
        return False


def _tokenised(done: dict[str, Any]) -> dict[str, Any]:
    """The last stage as the others tell theirs."""
    stats = done["stats"]["train"]
    return {"name": "tokenize", "in": stats["rows"] + stats["masked"], "out": stats["rows"]}
