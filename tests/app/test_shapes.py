"""A reply is told by its shape, and shown as what it is."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from cockpit.shapes import NEW, alike, compared, opened, shape
from cockpit.widgets.shown import table
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
        found = shape(reply)
        assert (type(found.view) if found.view else found.kind) == drawn
        assert found.view is None or found.kind == "json"


def test_thinking_is_told_from_what_is_said() -> None:
    whole = shape("<think>one\ntwo</think>\n\nsaid")
    assert (whole.thinking, whole.body, whole.thought) == ("one\ntwo", "said", True)
    cut = shape("<think>one")
    assert (cut.thinking, cut.body, cut.thought) == ("one", "", False)
    assert shape("no <think>this</think>").thinking == ""


def test_while_it_is_written_a_tag_is_never_shown() -> None:
    text = "<think>hm, so</think>\nyes"
    told = [opened(text[:end]) for end in range(1, len(text) + 1)]
    assert [body for _, body in told if body] == ["y", "ye", "yes"]
    assert ("hm,", "") in told
    assert opened("<b") == ("", "<b")


@pytest.mark.parametrize("width", [24, 36, 90])
def test_a_table_keeps_its_columns_in_line_and_cuts_nothing(width: int) -> None:
    rows = [TRIPLE, {"subject": "Ada", "predicate": "is", "object": "x", "object_type": "letter"}]
    lines = table(rows, TABLE, width).split("\n")
    assert max(line.cell_length for line in lines) <= width
    wanted = Counter("".join("".join(row.values()) for row in rows).replace(" ", ""))
    assert not wanted - Counter("".join(line.plain for line in lines)), "a word may be broken, and no letter is lost"
    assert lines[-1].plain == "2 triples"


def test_what_has_little_in_common_is_not_worth_marking() -> None:
    assert alike(["a b c d", "a b c x", "b a d c"])
    assert not alike(["a b c d", "a b c x", "a w x y"])
    assert alike(["居里夫人发现了镭", "居里夫人发明了镭"]) and not alike(["a", ""])


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
    content, _ = compared(before, now)
    assert content.markup.replace(f"[{NEW}]", "[").replace(f"[/{NEW}]", "]") == marked
