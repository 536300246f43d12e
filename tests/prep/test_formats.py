"""Shapes: what each becomes, what each refuses, which is found."""

from __future__ import annotations

from typing import Any

import pytest

from engine.prep import shapes


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


Q, A, S = said("user", "q"), said("assistant", "a"), said("system", "s")

GOOD = [
    ("messages", {"messages": [S, Q, A]}, [S, Q, A]),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, [Q, A]),
    ("alpaca", {"instruction": "q", "input": "more", "output": "a"}, [said("user", "q\nmore"), A]),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "system": "s", "history": [["old", "reply"]]},
        [S, said("user", "old"), said("assistant", "reply"), Q, A],
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [Q, A]),
    ("sharegpt", {"system": "s", "conversations": [Q, A]}, [S, Q, A]),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, [Q, A]),
    ("prompt_completion", {"question": "q", "answer": "a"}, [Q, A]),
    (
        "context_target",
        {"context": "Instruction: x\nInput: y\nz\nAnswer: ", "target": "a"},
        [said("user", "x\ny\nz"), A],
    ),
    ("context_target", {"context": "Instruction: x\nAnswer: ", "target": "a"}, [said("user", "x"), A]),
    ("context_target", {"context": "q", "target": "a"}, [Q, A]),
]


@pytest.mark.parametrize(("shape", "row", "expected"), GOOD)
def test_rows_become_conversations_and_their_shape_is_found(
    shape: str, row: dict[str, Any], expected: list[dict[str, str]]
) -> None:
    assert shapes.detect([row]) == shape
    assert shapes.load(shape).convert(row) == {"messages": expected}


def test_plain_text_stays_text() -> None:
    assert shapes.detect([{"text": "t"}]) == "text"
    assert shapes.load("text").convert({"text": "t", "url": "u"}) == {"text": "t", "columns": {"url": "u"}}


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        ("messages", {"messages": "no"}, "not a list"),
        ("messages", {"messages": []}, "no assistant turn"),
        ("messages", {"messages": [Q]}, "no assistant turn"),
        ("messages", {"messages": [Q, said("assistant", " ")]}, "turn 2 .assistant. is empty"),
        ("messages", {"messages": [Q, said("robot", "a")]}, "turn 2 has the role 'robot'"),
        ("messages", {"messages": [Q, {"role": ["assistant"], "content": "a"}]}, "turn 2 has the role"),
        ("messages", {"messages": [Q, {"role": "assistant", "content": None}]}, "turn 2 .assistant. is missing"),
        ("messages", {"messages": [Q, "a"]}, "turn 2 is str"),
        ("messages", {"messages": [Q, A | {"tool_calls": [{}]}]}, "call 1 names no function"),
        ("messages", {"messages": [Q, said("assistant", "\ud800")]}, "half a surrogate"),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "q"}]}, "turn 1 has the role"),
        ("alpaca", {"instruction": "q", "output": 3}, "output is int"),
        ("alpaca", {"instruction": "q", "output": "a", "history": ["x"]}, "history is not"),
        ("prompt_completion", {"prompt": "q"}, "is missing"),
        ("text", {"text": " "}, "text is empty"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(shape: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        shapes.load(shape).convert(row)


def test_the_shape_of_most_rows_wins_and_none_is_an_error() -> None:
    assert shapes.detect([{"odd": 1}, {"text": "t"}, {"text": "t"}]) == "text"
    with pytest.raises(ValueError, match="columns foo"):
        shapes.detect([{"foo": 1}])
