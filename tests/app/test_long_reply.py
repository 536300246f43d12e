"""A long reply stays as fluid as a short one: what a write costs depends on the newest part, not on the reply."""

from __future__ import annotations

import random
import time

import pytest
from textual.widgets import Markdown

from cockpit.screens.chat import ChatScreen
from cockpit.state.chat_tree import ChatReply
from cockpit.state.markdown_parts import LONGEST, PART, MarkdownParts
from tests.app.fake import FakeEngine
from tests.app.screen import run_app, screen_text, until

PROSE = "Some *prose* with `code` and more words than one line has. " * 7 + "\n\n"
KINDS = {
    "prose": PROSE * 60,
    "code": "```python\n" + "value = compute(1, 2)  # a line\n" * 800 + "```\nThe end.\n",
    "list": "- an item of a long list\n" * 1000,
    "lines": "one line after another\n" * 1000,
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_short_and_together_the_text(kind: str) -> None:
    text, draw = KINDS[kind], random.Random(1)
    parts, found, at = MarkdownParts(), [""], 0
    while at < len(text):
        size = draw.randint(1, 60)
        for piece, begins in parts.feed(text[at : at + size]):
            if begins:
                found.append("")
            found[-1] += piece
        at += size
    assert len(found) >= len(text) // (LONGEST + 200) and max(map(len, found)) < LONGEST + 200
    assert parts.exact == (kind == "prose")
    assert all(part.count("```") % 2 == 0 for part in found), "code that is divided is closed and opened again"
    whole = "".join(found) if kind != "code" else "".join(found).replace("```\n```python\n", "")
    assert whole == text
    if kind == "prose":
        assert max(map(len, found)) < PART + 200


@pytest.mark.parametrize(
    ("further", "exact"),
    [
        ("More prose.\n", True),
        ("1. a list that may go on\n", False),
        ("    of an item\n", False),
        ("- no line end", False),
        ("[1]: https://example.org\n", False),
        ("```x``` is code in a line\n\nAnd prose.\n", True),
    ],
)
def test_parts_that_the_whole_would_not_divide_are_drawn_anew(further: str, exact: bool) -> None:
    parts = MarkdownParts()
    for line in (PROSE * 5).splitlines(keepends=True):  # the part ends where a write ends
        assert parts.feed(line) == [(line, False)]
    assert [begins for _, begins in parts.feed(further)] == [True] and parts.exact == exact


def test_a_fence_within_longer_marks_ends_no_code() -> None:
    parts = MarkdownParts()
    text = "  ````md\n```python\n\n```\n" + "a line\n\n" * 800 + "````\n"
    pieces = parts.feed(text)
    assert len(pieces) > 1 and not parts.exact
    assert pieces[0][0].endswith("\n````\n") and pieces[1][0].startswith("  ````md\n")


async def test_a_write_costs_the_same_at_20000_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Markdown that a write parses is bounded; so is its CPU time, by a wide margin for a busy machine."""
    parsed: list[int] = []
    append = Markdown.append

    def record(widget: Markdown, text: str) -> object:
        parsed.append(len(widget.source) + len(text))
        return append(widget, text)

    monkeypatch.setattr(Markdown, "append", record)
    async with run_app(FakeEngine(), first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        await until(pilot, lambda: "Nothing loaded yet" in screen_text(pilot))
        text = (PROSE * 60)[:20_000] + KINDS["code"][:6_000]
        answer = await screen.conversation.begin(["m"], [0], False)
        reply, costs = answer.reply_of(0), []
        for at in range(0, len(text), 400):
            before = time.process_time()
            reply.write(text[at : at + 400], 1)
            await reply.flush()
            await pilot.pause(0.01)
            costs.append(time.process_time() - before)
        assert len(parsed) > 40 and max(parsed) < LONGEST + 600
        assert sum(costs[40:50]) < 4 * sum(costs[5:15]), costs
        await reply.finish(ChatReply("m", text, {"tokens": 1}))
        await until(pilot, lambda: "compute(1, 2)" in screen_text(pilot))
        assert "".join(each.source for each in reply.query(Markdown)) == text
