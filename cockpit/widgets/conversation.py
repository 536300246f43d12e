"""What was said, as it is being said: Markdown streamed in pieces, kept in view, old turns dropped from the screen."""

from __future__ import annotations

import json
import time

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Log, Markdown, Static
from textual.widgets.markdown import MarkdownStream

from engine.protocol.messages import Problem

TICK = 0.1
"""Seconds between writes: Markdown is parsed ten times a second, not once a token."""
RAW_RATE = 400.0
"""Tokens a second above which a reply is written as plain lines until it is whole."""
TURNS = 40
"""Turns kept on the screen; the model still gets the whole conversation."""


class Said(Static):
    """A user's turn, as typed."""

    DEFAULT_CSS = (
        "Said { height: auto; margin: 1 0 0 0; padding: 0 1; border-left: thick $accent; background: $panel; }"
    )


class Trouble(Static):
    """A problem as a panel one can read."""

    DEFAULT_CSS = (
        "Trouble { height: auto; margin: 1 0 0 0; padding: 0 1; border: round $error; border-title-color: $error; }"
    )

    def __init__(self, problem: Problem) -> None:
        hint = f"→ {problem.hint}" if problem.hint else ""
        super().__init__("\n".join(filter(None, (problem.cause, hint))) or " ", markup=False)
        self.border_title = f"✗ {problem.title}"


class Reply(Vertical):
    """One reply: `write` gathers, `flush` shows, `finish` puts the whole text in place."""

    DEFAULT_CSS = """
    Reply { height: auto; margin: 1 0 0 0; border-left: thick $primary; }
    Reply Markdown { margin: 0; padding: 0 1; }
    Reply MarkdownFence { margin: 0; max-height: 100; }
    Reply MarkdownFence > Label { width: 1fr; padding: 0 1; }
    Reply Log { height: 12; }
    Reply .facts { height: 1; padding: 0 1; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tokens = "", 0
        self._waiting, self._flushed, self._shown = "", time.monotonic(), 0
        self._stream: MarkdownStream | None = None
        self._raw: Log | None = None

    def compose(self) -> ComposeResult:
        yield Markdown(open_links=False)

    def write(self, text: str, tokens: int) -> None:
        self.text += text
        self._waiting += text
        self.tokens = tokens

    async def flush(self) -> None:
        """Show what has come since the last time."""
        waiting, self._waiting = self._waiting, ""
        if not waiting:
            return
        now = time.monotonic()
        rate = (self.tokens - self._shown) / max(now - self._flushed, TICK)
        self._flushed, self._shown = now, self.tokens
        if self._raw is None and rate > RAW_RATE:
            await self._stop_stream()
            self._raw = Log()
            await self.mount(self._raw)
        if self._raw is not None:
            self._raw.write(waiting)
            return
        if self._stream is None:
            self._stream = Markdown.get_stream(self.query_one(Markdown))
            waiting = _fenced(self.text)
        await self._stream.write(waiting)

    async def finish(self, text: str, facts: str) -> None:
        """The reply is whole: what was missed is filled in, and `facts` stands beneath."""
        await self.flush()
        await self._stop_stream()
        if self._raw is not None:
            await self._raw.remove()
        whole = indented(text)
        if self._raw is not None or whole != self.text:
            await self.query_one(Markdown).update(_fenced(whole))
        self.text = text
        await self.mount(Static(facts, classes="facts", markup=False))

    async def _stop_stream(self) -> None:
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None


def _fenced(text: str) -> str:
    """JSON is shown as it is, not read as Markdown."""
    return f"```json\n{text}" if text.lstrip()[:1] in ("[", "{") and text.strip() else text


def indented(text: str) -> str:
    """JSON on lines that one can read; anything else as it is."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return text


class Conversation(VerticalScroll):
    """The turns. Stays at the end unless one scrolls up."""

    DEFAULT_CSS = """
    Conversation { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    Conversation .note { height: auto; color: $text-muted; padding: 1 1 0 1; }
    """
    BINDINGS = [("j", "scroll_down", "Down"), ("k", "scroll_up", "Up")]

    def on_mount(self) -> None:
        self.anchor()
        self.set_interval(TICK, self._flush)

    async def _flush(self) -> None:
        for reply in self.query(Reply):
            if reply.is_mounted:
                await reply.flush()

    async def clear(self, note: str | Content) -> None:
        """Nothing but a note, which says what to do next."""
        await self.remove_children()
        await self.mount(Static(note, classes="note"))

    async def add(self, turn: Said | Trouble | Reply) -> None:
        """One more turn at the end; the oldest beyond `TURNS` leave the screen."""
        await self.query(".note").remove()
        await self.mount(turn)
        turns = [child for child in self.children if not child.has_class("note")]
        if gone := turns[:-TURNS]:
            await self.remove_children(gone)
            await self.mount(
                Static("earlier turns are no longer shown; the model still knows them", classes="note"), before=0
            )
        self.anchor()
