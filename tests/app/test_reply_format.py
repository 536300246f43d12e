"""The format of a reply is detected from its text, and decides how the reply is shown."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from cockpit.state.reply_format import parse_reply, split_partial_reply
from cockpit.state.text_diff import NEW, are_similar, mark_new_words
from cockpit.widgets.reply_views import format_table
from engine.config.tasks import Outline, Table

TABLE = Table(("subject", "predicate", "object"), "triple")
TRIPLE = {"subject": "居里夫人", "subject_type": "人物", "predicate": "studied at", "object": "the University of Paris"}
GRAPH = {"question": "q", "standpoints": [{"id": "1", "text": "s", "arguments": [{"id": "2", "text": "a"}]}]}


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        (json.dumps([TRIPLE]), Table),
        (f"```json\n{json.dumps([TRIPLE])}\n```", Table),
        (json.dumps([{**TRIPLE, "object": 3}]), "json"),
        ("[]", "json"),
        ("{}", "json"),
        (json.dumps(GRAPH), Outline),
        (json.dumps({"standpoints": []}), "json"),
        (json.dumps({"standpoints": [{"text": "s", "arguments": ["a"]}]}), "json"),
        ('{"a": 1', "text"),
        ("3", "text"),
        ("a *word*", "text"),
        ("[" * 5000, "text"),
    ],
)
def test_kinds(text: str, drawn: object) -> None:
    for reply in (text, f"<think>hm</think>\n{text}"):
        found = parse_reply(reply)
        assert (type(found.view) if found.view else found.kind) == drawn
        assert found.view is None or found.kind == "json"


def test_thinking_is_separated_from_the_reply() -> None:
    whole = parse_reply("<think>one\ntwo</think>\n\nsaid")
    assert (whole.thinking, whole.body, whole.thinking_ended) == ("one\ntwo", "said", True)
    cut = parse_reply("<think>one")
    assert (cut.thinking, cut.body, cut.thinking_ended) == ("one", "", False)
    assert parse_reply("no <think>this</think>").thinking == ""


def test_while_it_is_written_a_tag_is_never_shown() -> None:
    text = "<think>hm, so</think>\nyes"
    parts = [split_partial_reply(text[:end]) for end in range(1, len(text) + 1)]
    assert [body for _, body in parts if body] == ["y", "ye", "yes"]
    assert ("hm,", "") in parts
    assert split_partial_reply("<b") == ("", "<b")


@pytest.mark.parametrize("width", [24, 36, 90])
def test_a_table_keeps_its_columns_in_line_and_cuts_nothing(width: int) -> None:
    rows = [TRIPLE, {"subject": "Ada", "predicate": "is", "object": "x", "object_type": "letter"}]
    lines = format_table(rows, TABLE, width).split("\n")
    assert max(line.cell_length for line in lines) <= width
    expected = Counter("".join("".join(row.values()) for row in rows).replace(" ", ""))
    assert not expected - Counter("".join(line.plain for line in lines)), "a word may be broken, and no letter is lost"
    assert lines[-1].plain == "2 triples"


def test_what_has_little_in_common_is_not_worth_marking() -> None:
    assert are_similar(["a b c d", "a b c x", "b a d c"])
    assert not are_similar(["a b c d", "a b c x", "a w x y"])
    assert are_similar(["居里夫人发现了镭", "居里夫人发明了镭"]) and not are_similar(["a", ""])


@pytest.mark.parametrize(
    ("before", "now", "marked"),
    [
        ("a b c", "a x c", "a [x] c"),
        ("a c", "a x y c", "a [x y] c"),
        ("a\n b", "a\n  x\n  y", "a\n  [x]\n  [y]"),
        ("a  b", "a\nb", "a\nb"),
        ("居里夫人发现了镭", "居里夫人发明了镭", "居里夫人发[明]了镭"),
    ],
)
def test_differences_are_marked_word_by_word(before: str, now: str, marked: str) -> None:
    content, _ = mark_new_words(before, now)
    assert content.markup.replace(f"[{NEW}]", "[").replace(f"[/{NEW}]", "]") == marked
