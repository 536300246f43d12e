"""The data screen: the rows that a profile would train on, as conversations, as tokens and as batches."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static

from cockpit.connection.attachment import Attachment
from cockpit.connection.submission import api_key_environment
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.files import list_profiles
from cockpit.screens.base import opens_dialog
from cockpit.screens.from_data import DraftingScreen
from cockpit.screens.row_browser import EXPANDED, REJECTED
from cockpit.widgets import row_view
from cockpit.widgets.picker import Choice, Picker
from engine.config.profile import ProfileError, parse
from engine.protocol.home import Home
from engine.protocol.messages import Problem

MAX_COUNTED = 5000
"""Rows up to which tokens are counted automatically."""
SOURCES = "sources"
"""The choice that shows the rows before all stages."""
STAGES = {
    "expand": "asks the service for new rows; its earlier answers are kept",
    "validate": "rejects bad rows, each with its reason",
    "exclude": "leaves out the rows that data.exclude lists",
    "clean": "repairs text and rejects rows that break a rule",
    "dedup": "rejects equal and nearly equal rows",
    "split": "sets validation and test rows apart",
    "balance": "gives each value of a column the same number of rows",
    "tokenize": "all stages, as a run does first",
}
EMPTY = (
    "[bold $text]No data open.[/]\n\n[$accent]o[/] picks a profile and shows the rows it would train on, "
    "or opens a data file or folder by its path.\n"
    "To train on your own data: open the file, then [$accent]T[/] writes a profile for it."
)
PROFILE_SUFFIXES = (".yaml", ".yml")
"""Suffixes of profiles. Any other file is data, except JSON that reads as a profile."""
MAX_PROFILE_BYTES = 100_000


class DataScreen(DraftingScreen):
    HELP_TEXT = """
    The rows that a profile would train on. `t` shows a row as a conversation, as tokens (trained ones are underlined),
    as the text that training and chat produce, and as it stands in its file. `b` shows real batches. A row that cannot
    be used is rejected and named with its file and line; training goes on without it. `v` shows the held-out rows and
    the rejected ones.
    `/` finds rows: words and "phrases" in them, `column=value`, `source:name`, `chars>2000`, `tokens<20`,
    `is:undecided`; a number goes to that row.
    Rows that a service generated are a part of their own: `a` accepts a row, `x` drops it, `u` takes that back, `f`
    shows only undecided rows; beside each row is what it was made from. Dropped rows are never trained on.
    `r` runs the stages up to one that you choose, as a run does first, and shows the rows that leave it and those that
    it rejects; `r` and `sources` shows the rows as they were read. Earlier results come from the cache. Esc stops;
    finished parts are kept.
    `T` writes a profile that trains on these rows, with a base that is on this machine, and opens it on Profile.
    `n` counts the tokens of large sets and of expanded rows, which are not counted automatically.
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
        Binding("T", "train", "Train on it"),
        Binding("b", "batch", "Batches"),
        Binding("v", "part", "Part"),
        Binding("slash", "find", "Find", key_display="/"),
        Binding("r", "run", "Run stages"),
        Binding("s", "facts", "Facts"),
        Binding("w", "worst", "Worst rows"),
        Binding("n", "count", "Count tokens", show=False),
        Binding("escape", "stop", "Back", show=False),
    ]

    _typed = Path()
    """The profile or the data as it was named."""

    def compose_body(self) -> ComposeResult:
        yield Static(id="place")
        with Horizontal(id="body"):
            with Vertical(id="main"):
                yield Static(row_view.LEGEND, id="legend")
                with VerticalScroll(id="row"):
                    yield Static(Content.from_markup(tr(EMPTY)), id="content")
            with VerticalScroll(id="side"):
                yield Static(id="facts")

    def on_mount(self) -> None:
        self.show_status(tr("no profile open"))
        self.query_one("#row").focus()

    # ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(exclusive=True, group="pick")
    async def action_pick(self) -> None:
        files = await asyncio.to_thread(list_profiles, self.app.home, Path.cwd())
        choices = [Choice(str(file.path), f"{tr(file.place)} · {file.description}", file.name) for file in files]
        path = await self.app.push_screen_wait(
            Picker(
                tr("Open the data of a profile"),
                tr("a name on the list, or the path of a profile, a data file or a folder"),
                choices,
                paths=True,
            )
        )
        if path:
            self.open(Path(path))

    def read_again(self) -> None:
        self.notify(tr("The worker had ended: the data are read again."))
        self.open(self._typed, (self.part, self.index))

    @work(exclusive=True, group="open")
    async def open(self, typed: Path, at: tuple[str, int] = ("train", 0)) -> None:
        """Have the worker read the profile's sources, then show a row, given by its part and index, and count
        tokens."""
        self._typed = typed
        engine = self.app.engine
        path = typed.expanduser().absolute()
        try:
            text, is_data = "", True
            if engine.is_here or path.is_file():
                text, is_data = await asyncio.to_thread(_read_profile, path)
            if is_data and not engine.is_here:  # profiles are here, data on the engine's host
                path = engine.locate(typed)
                text = _wrap_data(path)
            keys = await asyncio.to_thread(_find_keys, text, path, self.app.home, engine)
            await self.worker.set_environment(keys)
        except (OSError, UnicodeDecodeError) as error:
            self.show_problem(
                Problem(code="file.unreadable", title=tr("cannot read {path}", path=path), cause=str(error))
            )
            return
        self.data_name, self.summary, self.stats, self.rows = path.stem, {}, {}, {}
        self.refresh_bindings()
        self.show_status(tr("reading …"))
        directory = str(path.parent) if engine.is_here else engine.directory
        summary = await self.ask("open", {"profile": text, "directory": directory})
        if summary is None:
            return
        self.forget_decisions()
        self.summary, self.index, self.step = summary, 0, 1
        self.totals, self.queries = dict(summary["parts"]), {}
        # Whoever opens the folder of an expansion, and not a profile, wants to review its rows.
        part, index = at
        self.select_part(EXPANDED if is_data and EXPANDED in summary["parts"] else part)
        self.index = index if index < self.totals.get(self.part, 0) else 0
        await self.show_current()
        # While the worker counts it cannot store decisions.
        if summary["rows"] <= MAX_COUNTED and self.part != EXPANDED:
            await self._count_tokens()

    async def _count_tokens(self) -> None:
        for part, rows in self.summary["parts"].items():
            if (
                rows
                and part not in (EXPANDED, REJECTED)
                and (numbers := await self.ask("stats", {"part": part})) is not None
            ):
                self.stats[part] = numbers
                self._take_dropped(numbers)
                self.show_facts()
        await self.show_current()

    def _take_dropped(self, numbers: dict[str, Any]) -> None:
        """The rows that tokenising leaves out are among the rejected ones from now on."""
        self.summary["parts"][REJECTED] = self.totals[REJECTED] = numbers["rejected"]
        self.queries.pop(REJECTED, None)
        self.rows = {key: row for key, row in self.rows.items() if key[0] != REJECTED}
        self.refresh_bindings()  # there may be a part to go to now

    @work(exclusive=True, group="open")
    async def action_count(self) -> None:
        if self.summary:
            await self._count_tokens()

    # ── stages ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @opens_dialog
    @work(exclusive=True, group="open")
    async def action_run(self) -> None:
        """Run the profile's stages up to one, as a run does first, and show the rows that leave it."""
        if not self.summary:
            return
        names = self.summary["stages"]
        choices = [Choice(name, tr(STAGES[name])) for name in names]
        choices += [Choice(SOURCES, tr("the rows as they were read"))] if self.summary.get("shown") else []
        picker = Picker(tr("Run the stages up to"), tr("its rows are shown then"), choices, len(names) - 1)
        if name := await self.app.push_screen_wait(picker):
            await self._run_stages("" if name == SOURCES else name)

    def action_worst(self) -> None:
        """Open the rows that the run of the dashboard learnt worst."""
        from cockpit.screens.worst_rows import WorstRowsScreen

        run = self.app.state.selected
        if run is None:
            self.notify(tr("no run yet: its training shows which rows are learnt worst"), severity="warning")
        elif len(self.app.screen_stack) == 1:
            self.app.push_screen(WorstRowsScreen(run))

    async def _run_stages(self, until: str) -> None:
        if self.request:  # tokens are being counted, and would have to be counted again
            await self.worker.cancel(self.request)
        self.show_status(tr("running the stages …"), tr("Esc stops"))
        done = await self.ask("stages", {"until": until})
        if done is None:
            return
        self.changed = False
        tokenize = [_tokenize_stage(done)] if "stats" in done else []
        self.summary |= {"done": [*done["stages"], *tokenize], "shown": until}
        self.summary |= {"parts": done["parts"], "decisions": done["decisions"]}
        self.totals, self.queries = dict(done["parts"]), {}
        self.rows.clear()
        self.stats.clear()
        self.view = "conversation" if self.view == "batch" else self.view
        self.select_part(self.part if self.totals.get(self.part) else "train")
        self.action_go_to(0)
        if tokenize:
            counts = tr(
                "{rows:,} rows, {tokens:,} tokens, {trained_tokens:,} trained",
                rows=done["rows"],
                tokens=done["tokens"],
                trained_tokens=done["trained_tokens"],
            )
            self.notify(counts, title=tr("Prepared"))
        if sum(rows for part, rows in self.totals.items() if part != REJECTED) <= MAX_COUNTED:
            await self._count_tokens()

    def interrupt(self) -> bool:
        if self.request:
            self.run_worker(self.worker.cancel(self.request), group="stop")
        return bool(self.request)

    async def action_stop(self) -> None:
        """Esc: cancel the current question, else leave the batches, else go back."""
        if self.request:
            await self.worker.cancel(self.request)
        elif self.view == "batch":
            self.action_batch()
        else:
            await self.app.action_back()


def _read_profile(path: Path) -> tuple[str, bool]:
    """A profile's text, and whether `path` is data. Data gets a profile that trains on it and has all other settings at
    their defaults."""
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix in PROFILE_SUFFIXES:
        return path.read_text(encoding="utf-8"), False
    if suffix == ".json" and size < MAX_PROFILE_BYTES and is_profile(text := path.read_text(encoding="utf-8")):
        return text, False
    return _wrap_data(path), True


def _wrap_data(path: Path) -> str:
    """A profile that trains on a data file or folder, with all other settings at their defaults."""
    return json.dumps({"name": path.stem, "data": {"train": [{"source": str(path)}]}})


def _find_keys(text: str, path: Path, home: Home, engine: Attachment) -> dict[str, str]:
    """The API keys that the profile's stages need from the shell of the engine's host, or from here where it lacks
    them; none for an invalid profile, which the worker reports."""
    try:
        profile = parse(text, path.name, path.parent, home=home, elsewhere=not engine.is_here)
        return api_key_environment(profile, {**os.environ, **engine.shell})
    except ProfileError:
        return {}


def is_profile(text: str) -> bool:
    """Whether JSON is a profile rather than rows: an object whose `data` has a `train`."""
    try:
        return "train" in json.loads(text)["data"]
    except (ValueError, KeyError, TypeError):
        return False


def _tokenize_stage(done: dict[str, Any]) -> dict[str, Any]:
    """The tokenize stage in the form of the other stages."""
    stats = done["stats"]["train"]
    return {"name": "tokenize", "in": stats["rows"] + stats["masked"], "out": stats["rows"]}
