"""One reply: streamed as Markdown while it arrives, then shown by its format, as raw text, or with its differences
marked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Log, Markdown, Static
from textual.widgets.markdown import MarkdownStream

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.chat_tree import ChatReply
from cockpit.state.formatting import format_hot_cost
from cockpit.state.markdown_parts import MarkdownParts
from cockpit.state.reply_format import ParsedReply, indent_json, parse_reply, split_partial_reply
from cockpit.state.text_diff import mark_new_words
from cockpit.widgets.reply_views import views
from engine.protocol.terminal import show_controls

TICK = 0.1
"""Seconds between writes: Markdown is parsed ten times a second, not once a token."""
RAW_RATE = 400.0
"""Tokens a second above which a reply is written as plain lines until it is complete."""
FINISHES = {"length": "longest reply reached", "cancelled": "stopped", "broken": "interrupted"}
"""How a reply ended, where that is worth showing."""


class Reply(Vertical):
    """`write` collects text, `flush` shows it, `finish` shows the complete reply, and `redraw` shows it in another
    way."""

    DEFAULT_CSS = """
    Reply { width: 1fr; height: auto; margin: 1 0 0 0; border-left: solid $primary; }
    Reply .body { height: auto; }
    Reply .body > Static { padding: 0 1; }
    Reply Markdown { margin: 0; padding: 0 1; }
    Reply Markdown.-further { margin: 1 0 0 0; }
    Reply Markdown > MarkdownBlock:last-child { margin-bottom: 0; }
    Reply MarkdownFence { margin: 0; max-height: 100; }
    Reply MarkdownFence > Label { width: 1fr; padding: 0 1; }
    Reply Log { height: 12; }
    Reply .name { height: auto; padding: 0 1; }
    Reply .facts { height: auto; padding: 0 1; color: $text-muted; }
    """

    def __init__(self, column: int = 0, content: ChatReply | None = None) -> None:
        """`column`: the index of this reply in its answer. `content`: a reply that is complete already."""
        super().__init__()
        self.column, self.content = column, content
        self.text, self.tokens = content.text if content else "", 0
        self.thinking = content.thinking if content else ""
        self.raw = False
        self.stopped = False
        """Whether the user has stopped it: nothing is added until it is complete."""
        self.against: str | None = None
        """The text that differences are marked against; None marks none."""
        self.plain = False
        """Whether it is shown as plain text because differences are marked in this reply or in those beside it."""
        self.hidden = False
        """Whether figures are hidden because they would reveal the target."""
        self.note = ""
        """Text before the figures: the number of this branch."""
        self._difference = ""
        """How many words differ."""
        self._streamed, self._flushed, self._flushed_tokens = 0, time.monotonic(), 0
        self._stream: MarkdownStream | None = None
        self._parts = MarkdownParts()
        self._writing = asyncio.Lock()
        self._log: Log | None = None

    def compose(self) -> ComposeResult:
        yield Static(classes="name")
        with Vertical(classes="body"):
            if self.content is None:
                yield Markdown(open_links=False)
        yield Static(classes="facts")

    async def on_mount(self) -> None:
        self.query_one(".name").display = False
        if self.content is not None:
            await self.redraw()
        else:
            self._show_facts()

    # ── while it arrives ──────────────────────────────────────────────────────────────────────────────────────────

    def write(self, text: str, tokens: int, thinking: str = "") -> None:
        if self.stopped:
            return
        self.text += text
        self.thinking += thinking
        self.tokens = tokens

    async def flush(self) -> None:
        """Show the text that has arrived since the last call."""
        async with self._writing:
            await self._flush()

    async def _flush(self) -> None:
        if self.content is not None or not self.is_attached or not (self.text or self.thinking):
            return
        thinking, body = split_partial_reply(self.text)
        thinking = thinking or self.thinking
        if thinking and not body:
            self.query_one(".facts", Static).update(tr("thinking … {split} words", split=len(thinking.split())))
        waiting = show_controls(body[self._streamed :])
        if not waiting:
            return
        now = time.monotonic()
        rate = (self.tokens - self._flushed_tokens) / max(now - self._flushed, TICK)
        self._flushed, self._flushed_tokens = now, self.tokens
        first, self._streamed = not self._streamed, len(body)
        if self._log is None and rate > RAW_RATE:
            await self._stop_stream()
            self._log = Log()
            await self.query_one(".body").mount(self._log)
        if self._log is not None:
            self._log.write(waiting)
            return
        for piece, begins in self._parts.feed(_fence_json(waiting) if first else waiting):
            if begins:
                await self._stop_stream()
                await self.query_one(".body").mount(Markdown(open_links=False, classes="-further"))
            if self._stream is None:
                self._stream = Markdown.get_stream(self.query(Markdown).last())
            await self._stream.write(piece)

    async def finish(self, content: ChatReply) -> None:
        """The reply is complete."""
        async with self._writing:
            await self._flush()
            await self._stop_stream()
            streamed, self.content, self.text = self.text, content, content.text
        found = self._parse()
        plain = found.kind == "text" and not found.thinking and self._log is None and content.text == streamed
        plain = plain and self._parts.exact
        if plain and content.text.strip() and not (self.raw or self.plain):
            self._show_facts()  # the text is on the screen already
        else:
            await self.redraw()
        self._log = None

    async def _stop_stream(self) -> None:
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
            async with self.query(Markdown).last().lock:
                pass  # `stop` does not wait for the last write; the widget must not be removed before that is done

    # ── when it is complete ───────────────────────────────────────────────────────────────────────────────────────

    async def redraw(self) -> None:
        """Show the complete reply as `raw`, `plain` and `against` ask for. Does nothing while it is being written."""
        if self.content is None:
            return
        body = self.query_one(".body")
        text = self.content.text
        widgets: list[Widget]
        if "problem" in self.content.facts:
            widgets = [Static(Content.styled(f"✗ {self.content.facts['problem']}", "$text-error"))]
        elif self.raw:
            thinking = f"{self.content.thinking}\n\n" if self.content.thinking else ""
            shown = Content(text) if text else Content.styled(tr("(an empty reply)"), "$foreground-muted")
            widgets = [Static(Content.assemble((thinking, "$foreground-muted"), shown))]
        elif self.plain and self.against in (None, text):
            widgets = [Static(Content(indent_json(text)))]
        elif self.plain and self.against is not None:
            # Comparing long replies takes a while, so it is done off the event loop.
            before, now = indent_json(self.against), indent_json(text)
            marked, self._difference = await asyncio.to_thread(mark_new_words, before, now)
            widgets = [Static(marked if text else Content.styled(tr("(an empty reply)"), "$foreground-muted"))]
        else:
            widgets = list(views(self._parse()))
        with self.app.batch_update():
            await body.remove_children()
            await body.mount(*widgets)
        self._show_facts()

    def _parse(self) -> ParsedReply:
        """The parsed reply. Thinking that the worker sent separately takes the place of thinking in the text."""
        assert self.content is not None
        found = parse_reply(self.content.text)
        return replace(found, thinking=self.content.thinking) if self.content.thinking else found

    def _show_facts(self) -> None:
        line = self.query_one(".facts", Static)
        parts = [self.note]
        if self.content is not None and not self.hidden:
            parts.append(format_facts(self.content.facts))
            if self.against is not None and "problem" not in self.content.facts:
                parts.append(tr("the same") if self.against == self.text else self._difference)
            if rating := self.content.rating:
                parts.append("★" * rating + "☆" * (5 - rating))
        text = " · ".join(filter(None, parts))
        if self.content is not None and "held_seconds" in self.content.facts:
            text += f"\n{format_hot_cost(self.content.facts)}"
        line.update(Content(text))
        line.display = bool(text)


def format_facts(facts: Mapping[str, Any]) -> str:
    """A worker's figures for its reply, in a line."""
    if "tokens" not in facts:
        return ""
    parts = [tr("{tokens:,} token{plural}", tokens=facts["tokens"], plural="s"[: facts["tokens"] != 1])]
    if facts.get("tokens_per_second"):
        parts.append(tr("{tokens_per_second:.1f} tok/s", tokens_per_second=facts["tokens_per_second"]))
    if "first_token_seconds" in facts:
        parts.append(tr("first after {first_token_seconds:.2f} s", first_token_seconds=facts["first_token_seconds"]))
    if finish := tr(FINISHES.get(str(facts.get("finish", "")), "")):
        parts.append(finish)
    return " · ".join(parts)


def _fence_json(text: str) -> str:
    """JSON in a code block, so that it is not read as Markdown while it arrives."""
    return f"```json\n{text}" if text.lstrip()[:1] in ("[", "{") else text
