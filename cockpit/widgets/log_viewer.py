"""The whole log of a run: search, follow, wrap, levels, ranks apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state import log_lines
from cockpit.state.formatting import counted
from cockpit.state.log_lines import LogLine, LogText
from engine.protocol.messages import LogQuery
from engine.protocol.states import STARTED

if TYPE_CHECKING:
    from cockpit.connection.engine_app import EngineApp

FIRST, PART = 1 << 18, 1 << 20
"""Bytes that are read at first from the end, and of each older part."""
PERIOD = 1.0
"""Seconds between two looks for something new."""


class LogView(ScrollView, can_focus=True):
    """Draws the lines that are in sight; a long log costs no more than a short one."""

    COMPONENT_CLASSES = {"log--error", "log--warning", "log--found", "log--place"}
    DEFAULT_CSS = """
    LogView { height: 1fr; background: $background; scrollbar-size: 1 1; }
    LogView > .log--error { color: $error; }
    LogView > .log--warning { color: $warning; }
    LogView > .log--found { background: $accent; color: $background; text-style: bold; }
    LogView > .log--place { background: $panel; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[LogLine] = []
        self.wrap = False
        self.words = ""
        self.found: int | None = None
        """The line of the present match."""
        self._rows: list[tuple[int, str]] = []
        """Rows on the screen: line, and the part of its text."""

    def show(self, lines: Sequence[LogLine]) -> None:
        self.lines = list(lines)
        self._arrange()

    def _arrange(self) -> None:
        width = max(1, self.scrollable_content_region.width)
        rows: list[tuple[int, str]] = []
        widest = 0
        for at, line in enumerate(self.lines):
            cells = len(line.text) if line.text.isascii() else cell_len(line.text)
            if not self.wrap or cells <= width:
                widest = max(widest, cells)
                rows.append((at, line.text))
            else:
                rows += [(at, part) for part in chop_cells(line.text, width)]
        self._rows = rows
        self.virtual_size = Size(width if self.wrap else widest, len(rows))
        self.refresh()

    def on_resize(self) -> None:
        self._arrange()

    @property
    def is_at_end(self) -> bool:
        return self.scroll_offset.y >= self.max_scroll_y

    @property
    def first_line(self) -> int:
        """The line at the top."""
        at = self.scroll_offset.y
        return self._rows[at][0] if at < len(self._rows) else 0

    def go_to(self, line: int) -> None:
        """Scroll so that this line is in sight."""
        row = next((at for at, (number, _) in enumerate(self._rows) if number >= line), 0)
        self.scroll_to(y=max(0, row - self.size.height // 3), animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        left, top = self.scroll_offset
        width = self.size.width
        base = self.rich_style
        if top + y >= len(self._rows):
            return Strip.blank(width, base)
        at, text = self._rows[top + y]
        line = self.lines[at]
        style = base
        if line.level:
            name = "log--error" if line.level == log_lines.ERROR else "log--warning"
            style = base + self.get_component_rich_style(name, partial=True)
        if at == self.found:
            style += self.get_component_rich_style("log--place", partial=True)
        segments = list(self._mark(text, style))
        return Strip(segments).adjust_cell_length(max(width + left, cell_len(text)), style).crop(left, left + width)

    def _mark(self, text: str, style: Style) -> list[Segment]:
        """The text with what was searched for marked."""
        sought = self.words
        searched = text.lower() if sought == sought.lower() else text
        if not sought or len(searched) != len(text):
            return [Segment(text, style)]
        marked = style + self.get_component_rich_style("log--found", partial=True)
        segments, done = [], 0
        while (at := searched.find(sought, done)) >= 0:
            segments += [Segment(text[done:at], style), Segment(text[at : at + len(sought)], marked)]
            done = at + len(sought)
        return [*segments, Segment(text[done:], style)]


class LogViewer(ModalScreen[None]):
    """Follows the log while its end is in sight."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    LogViewer { background: $background; }
    LogViewer > Vertical { width: 1fr; height: 1fr; }
    LogViewer .bar { height: 1; background: $surface; padding: 0 1; }
    LogViewer #log-name { width: 1fr; }
    LogViewer #log-find {
        width: 40; max-width: 60%; height: 1; border: none; padding: 0 1; background: $panel; display: none;
    }
    LogViewer #log-find.-open { display: block; }
    """
    BINDINGS = [
        Binding("slash", "find", "Search"),
        Binding("n", "next(1)", "Next"),
        Binding("N", "next(-1)", "Previous"),
        Binding("f", "follow", "Follow"),
        Binding("w", "wrap", "Wrap"),
        Binding("l", "level", "Level"),
        Binding("r", "rank", "Rank"),
        Binding("g,home", "edge(0)", "Start"),
        Binding("G,end", "edge(1)", "End"),
        Binding("j", "scroll(1)", "Down"),
        Binding("k", "scroll(-1)", "Up"),
        Binding("escape,q", "leave", "Close"),
    ]

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_id = run
        self.log_text = LogText()
        self._offset: int | None = None
        self._start = 0
        """Bytes of the log before what has been read."""
        self.following = True
        self._reading = False
        self._whole = False
        """Whether all has been read of a run that has ended."""
        self._level = log_lines.OTHER
        self._rank: int | None = None

    def compose(self) -> ComposeResult:
        with Vertical():
            with Horizontal(classes="bar"):
                yield Static(id="log-name")
                yield Input(placeholder=tr("search"), id="log-find", compact=True)
            yield LogView()
            yield Static(id="log-keys", classes="bar")

    @property
    def view(self) -> LogView:
        return self.query_one(LogView)

    def on_mount(self) -> None:
        self.view.wrap = self.app.settings.get("log.wrap", False)
        self.view.focus()
        self._poll()
        self.set_interval(PERIOD, self._poll)

    def _poll(self) -> None:
        run = self.app.state.runs.get(self.run_id)
        live = run is not None and run.state in STARTED
        if live or not self._whole:  # what it wrote last may say why it has ended
            self._read(live)
        elif self.following and not self.view.is_at_end:
            self._set_follow(False)  # it was scrolled

    @work(group="log")
    async def _read(self, live: bool) -> None:
        """Read what is new, unless that is being done: over a slow line a part takes longer than the period."""
        if self.app.client is None or self._reading:
            return
        self._reading = True
        try:
            await self._read_on(live)
        finally:
            self._reading = False

    async def _read_on(self, live: bool) -> None:
        before = self._offset
        query = LogQuery(run=self.run_id, offset=before, limit=FIRST if before is None else PART)
        reply = await self.app.ask("log", query)
        if reply is None:
            return
        if before is None:
            self._start = max(0, reply.offset - FIRST)
            head, newline, rest = reply.text.partition("\n")
            if self._start and newline:  # the first line is not whole
                whole = head.lstrip("\ufffd")  # a byte each: the rest of a character
                self._start += len(head) - len(whole) + len(whole.encode()) + 1
                reply.text = rest
        self._whole = not live and not reply.text and before is not None
        self._offset = reply.offset
        follows = self.following and (before is None or self.view.is_at_end)
        if reply.text or before is None:
            self.log_text.append(reply.text)
            self._start = 0 if self.log_text.dropped else self._start  # older parts would not join these lines
            self._show()
            if follows:  # at once: the next look has to see that it is at the end
                self.view.scroll_end(animate=False, force=True, immediate=True)
        self.following = follows
        self._show_bars()

    @work(exclusive=True, group="older")
    async def _read_older(self) -> None:
        """Read the part before what has been read, and stay where one is."""
        if not self._start or len(self.log_text.lines) >= log_lines.MOST:
            return
        limit = min(PART, self._start)
        reply = await self.app.ask("log", LogQuery(run=self.run_id, offset=self._start - limit, limit=limit))
        if reply is None:
            return
        self._start -= limit
        top = self.view.first_line
        before = len(self.view.lines)
        self.log_text.prepend(reply.text)
        self._show()
        added = len(self.view.lines) - before
        self.view.found = None if self.view.found is None else self.view.found + added
        self.view.go_to(top + added)
        self._show_bars()

    def _show(self) -> None:
        self.view.show(log_lines.select(self.log_text.all(), self._level, self._rank))

    def _show_bars(self) -> None:
        parts = [tr("▶ follows") if self.following else tr("‖ stands still"), counted(len(self.view.lines), "line")]
        parts += [tr("older lines: g")] if self._start else []
        parts += [tr("{dropped:,} older ones left out", dropped=self.log_text.dropped)] if self.log_text.dropped else []
        parts += [log_lines.LEVELS[self._level]] if self._level else []
        parts += [tr("rank {rank}", rank=self._rank)] if self._rank is not None else []
        parts += [tr("log of {run_id}", run_id=self.run_id)]
        self.query_one("#log-name", Static).update(Content(" · ".join(parts)), layout=False)
        keys = [("/", "search"), ("n N", "next"), ("f", "follow"), ("w", "wrap"), ("l", "level"), ("r", "rank")]
        keys += [("g G", "ends"), ("Esc", "close")]
        line = Content("  ").join(Content.assemble((key, "bold $accent"), f" {name}") for key, name in keys)
        self.query_one("#log-keys", Static).update(line, layout=False)

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_find(self) -> None:
        field = self.query_one("#log-find", Input)
        field.add_class("-open")
        field.focus()

    @on(Input.Changed, "#log-find")
    def _words_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.view.words = event.value
        self._go_to_match(self.view.first_line, 1)

    @on(Input.Submitted, "#log-find")
    def _words_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.view.focus()
        if event.value and self.view.found is None:
            self.notify(tr("{value} is not in the lines that are shown", value=event.value), severity="warning")

    def action_next(self, direction: int) -> None:
        here = self.view.first_line - 1 if self.view.found is None else self.view.found
        self._go_to_match(here + direction, direction)

    def _go_to_match(self, start: int, direction: int) -> None:
        view = self.view
        view.found = log_lines.find(view.lines, view.words, start, direction)
        if view.found is not None:
            self._set_follow(False)
            view.go_to(view.found)
        view.refresh()

    def action_follow(self) -> None:
        self._set_follow(not self.following)
        if self.following:
            self.view.scroll_end(animate=False, force=True)

    def _set_follow(self, follows: bool) -> None:
        self.following = follows
        self._show_bars()

    def action_wrap(self) -> None:
        view = self.view
        at = view.first_line
        view.wrap = not view.wrap
        self.app.settings.set("log.wrap", view.wrap)
        view.show(view.lines)
        view.scroll_end(animate=False, force=True) if self.following else view.go_to(at)

    def action_level(self) -> None:
        self._level = (self._level + 1) % len(log_lines.LEVELS)
        self._filter_again()

    def action_rank(self) -> None:
        """Show all ranks, then each by itself, as far as the lines say whose they are."""
        ranks: list[int | None] = [None, *self.log_text.list_ranks()]
        if len(ranks) == 1:
            self.notify(tr("no line says which rank it is of"))
            return
        self._rank = ranks[(ranks.index(self._rank) + 1) % len(ranks)] if self._rank in ranks else None
        self._filter_again()

    def _filter_again(self) -> None:
        self.view.found = None
        self._show()
        self._show_bars()
        self.view.scroll_end(animate=False, force=True)

    def action_edge(self, end: int) -> None:
        self._set_follow(bool(end))
        if end:
            self.view.scroll_end(animate=False, force=True)
        elif self.view.first_line == 0 and self._start:
            self._read_older()
        else:
            self.view.scroll_home(animate=False, force=True)
            if self._start:
                self._read_older()

    def action_scroll(self, by: int) -> None:
        self.view.scroll_relative(y=by, animate=False)
        self._set_follow(self.view.is_at_end)

    def action_leave(self) -> None:
        """Esc closes the search, then the log."""
        field = self.query_one("#log-find", Input)
        if field.has_class("-open"):
            field.value = ""
            field.remove_class("-open")
            self.view.words, self.view.found = "", None
            self.view.focus()
            self.view.refresh()
        else:
            self.dismiss(None)
