"""One reply: streamed as Markdown while it comes, then shown as what it is, as it came, or with its differences marked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Log, Markdown, Static
from textual.widgets.markdown import MarkdownStream

from cockpit.state.chat_tree import Answered
from cockpit.state.formatting import held
from cockpit.state.reply_format import Shape, compared, indented, opened, shape
from cockpit.widgets.reply_views import views

TICK = 0.1
"""Seconds between writes: Markdown is parsed ten times a second, not once a token."""
RAW_RATE = 400.0
"""Tokens a second above which a reply is written as plain lines until it is whole."""
ENDED = {"length": "longest reply reached", "cancelled": "stopped", "broken": "broken off"}
"""How a reply ended, where that is worth saying."""


class Reply(Vertical):
    """`write` gathers, `flush` shows, `finish` puts the whole in place; `look` chooses how that is seen."""

    DEFAULT_CSS = """
    Reply { width: 1fr; height: auto; margin: 1 0 0 0; border-left: solid $primary; }
    Reply .body { height: auto; }
    Reply .body > Static { padding: 0 1; }
    Reply Markdown { margin: 0; padding: 0 1; }
    Reply Markdown > MarkdownBlock:last-child { margin-bottom: 0; }
    Reply MarkdownFence { margin: 0; max-height: 100; }
    Reply MarkdownFence > Label { width: 1fr; padding: 0 1; }
    Reply Log { height: 12; }
    Reply .name { height: auto; padding: 0 1; }
    Reply .facts { height: auto; padding: 0 1; color: $text-muted; }
    """

    def __init__(self, column: int = 0, answered: Answered | None = None) -> None:
        """`column`: which of the answer's replies this is. `answered`: a reply that is whole already."""
        super().__init__()
        self.column, self.answered = column, answered
        self.text, self.tokens = answered.text if answered else "", 0
        self.thinking = answered.thinking if answered else ""
        self.raw = False
        self.against: str | None = None
        """The reply that differences are marked against; None: none are."""
        self.lined = False
        """Whether it is shown as lines of text, since differences are marked in this reply or in those beside it."""
        self.hidden = False
        """Whether figures would tell whose reply it is."""
        self.note = ""
        """Said before the figures: which branch this is."""
        self._moved = ""
        """How many words differ."""
        self._streamed, self._flushed, self._shown = 0, time.monotonic(), 0
        self._stream: MarkdownStream | None = None
        self._writing = asyncio.Lock()
        self._log: Log | None = None

    def compose(self) -> ComposeResult:
        yield Static(classes="name")
        with Vertical(classes="body"):
            if self.answered is None:
                yield Markdown(open_links=False)
        yield Static(classes="facts")

    async def on_mount(self) -> None:
        self.query_one(".name").display = False
        if self.answered is not None:
            await self.look()
        else:
            self._facts()

    # ── while it comes ────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, text: str, tokens: int, thinking: str = "") -> None:
        self.text += text
        self.thinking += thinking
        self.tokens = tokens

    async def flush(self) -> None:
        """Show what has come since the last time."""
        async with self._writing:
            await self._flush()

    async def _flush(self) -> None:
        if self.answered is not None or not (self.text or self.thinking):
            return
        thinking, body = opened(self.text)
        thinking = thinking or self.thinking
        if thinking and not body:
            self.query_one(".facts", Static).update(f"thinking … {len(thinking.split())} words")
        waiting = body[self._streamed :]
        if not waiting:
            return
        now = time.monotonic()
        rate = (self.tokens - self._shown) / max(now - self._flushed, TICK)
        self._flushed, self._shown = now, self.tokens
        first, self._streamed = not self._streamed, len(body)
        if self._log is None and rate > RAW_RATE:
            await self._stop_stream()
            self._log = Log()
            await self.query_one(".body").mount(self._log)
        if self._log is not None:
            self._log.write(waiting)
            return
        if self._stream is None:
            self._stream = Markdown.get_stream(self.query_one(Markdown))
        await self._stream.write(_fenced(waiting) if first else waiting)

    async def finish(self, answered: Answered) -> None:
        """The reply is whole."""
        async with self._writing:
            await self._flush()
            await self._stop_stream()
            streamed, self.answered, self.text = self.text, answered, answered.text
        found = self._shape()
        plain = found.kind == "text" and not found.thinking and self._log is None and answered.text == streamed
        if plain and answered.text.strip() and not (self.raw or self.lined):
            self._facts()  # it stands there already
        else:
            await self.look()
        self._log = None

    async def _stop_stream(self) -> None:
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
            async with self.query_one(Markdown).lock:
                pass  # stopping leaves the last write to itself; the widget must not be removed under it

    # ── when it is whole ──────────────────────────────────────────────────────────────────────────────────────────

    async def look(self) -> None:
        """Show the whole reply as `raw` and `against` say. Nothing while it is being written."""
        if self.answered is None:
            return
        body = self.query_one(".body")
        text = self.answered.text
        shown: list[Widget]
        if "problem" in self.answered.facts:
            shown = [Static(Content.styled(f"✗ {self.answered.facts['problem']}", "$text-error"))]
        elif self.raw:
            thought = f"{self.answered.thinking}\n\n" if self.answered.thinking else ""
            said = Content(text) if text else Content.styled("(an empty reply)", "$foreground-muted")
            shown = [Static(Content.assemble((thought, "$foreground-muted"), said))]
        elif self.lined and self.against in (None, text):
            shown = [Static(Content(indented(text)))]
        elif self.lined and self.against is not None:
            # Long replies take a while to compare: off the loop.
            marked, self._moved = await asyncio.to_thread(compared, indented(self.against), indented(text))
            shown = [Static(marked if text else Content.styled("(an empty reply)", "$foreground-muted"))]
        else:
            shown = list(views(self._shape()))
        with self.app.batch_update():
            await body.remove_children()
            await body.mount(*shown)
        self._facts()

    def _shape(self) -> Shape:
        """What it is; thinking that the worker told apart stands before it."""
        assert self.answered is not None
        found = shape(self.answered.text)
        return replace(found, thinking=self.answered.thinking) if self.answered.thinking else found

    def _facts(self) -> None:
        line = self.query_one(".facts", Static)
        told = [self.note]
        if self.answered is not None and not self.hidden:
            told.append(figures(self.answered.facts))
            if self.against is not None and "problem" not in self.answered.facts:
                told.append("the same" if self.against == self.text else self._moved)
            if rating := self.answered.rating:
                told.append("★" * rating + "☆" * (5 - rating))
        text = " · ".join(filter(None, told))
        if self.answered is not None and "held_seconds" in self.answered.facts:
            text += f"\n{held(self.answered.facts)}"
        line.update(text)
        line.display = bool(text)


def figures(facts: Mapping[str, Any]) -> str:
    """What a worker told of its reply, in a line."""
    if "tokens" not in facts:
        return ""
    told = [f"{facts['tokens']:,} token{'s'[: facts['tokens'] != 1]}"]
    if facts.get("tokens_per_second"):
        told.append(f"{facts['tokens_per_second']:.1f} tok/s")
    if "first_token_seconds" in facts:
        told.append(f"first after {facts['first_token_seconds']:.2f} s")
    if ended := ENDED.get(str(facts.get("finish", ""))):
        told.append(ended)
    return " · ".join(told)


def _fenced(text: str) -> str:
    """JSON is shown as it is while it comes, not read as Markdown."""
    return f"```json\n{text}" if text.lstrip()[:1] in ("[", "{") else text
