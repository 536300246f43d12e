"""Rows → another format → rows: nothing is lost that the format can hold, and what it cannot hold is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.bundled import find_bundled
from engine.prep import detect_format
from engine.prep.formats import FORMATS
from tests.prep.test_formats import GOOD, GRAPH

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)

words = st.text(max_size=12) | st.sampled_from(
    ["\nInput: x", "x\nAnswer: ", "Instruction: ", "```json\n[]\n```", '{"name": "f"}', "\r\n", "‮", "句子", "👩‍👩‍👧"]
)
replies = words.filter(lambda text: bool(text.strip()))
names = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["category", "input", "system", "text", "messages", "columns", "label", "history", "tools", "question", "chosen"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
columns = st.dictionaries(names, values, max_size=3)
harmless = st.dictionaries(st.text("abc", min_size=1, max_size=3), values, max_size=3)
arguments = st.dictionaries(st.text(max_size=4), values, max_size=2)
calls = st.builds(
    lambda name, given, ident: (
        ({"id": ident} if ident else {}) | {"type": "function", "function": {"name": name, "arguments": given}}
    ),
    words,
    arguments,
    st.text("c0123456789", max_size=4),
)
tools = st.builds(lambda name: {"type": "function", "function": {"name": name, "parameters": {}}}, words)


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def with_columns(row: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {**row, "columns": others} if others else row


plain_turns = st.one_of(
    st.builds(lambda text: said("user", text), words),
    st.builds(lambda text: said("system", text), words),
    st.builds(lambda text: said("assistant", text), replies),
)
tool_turns = st.one_of(
    st.builds(lambda made: said("assistant", "", tool_calls=made), st.lists(calls, min_size=1, max_size=2)),
    st.builds(
        lambda text, made: said("assistant", text, tool_calls=made), replies, st.lists(calls, min_size=1, max_size=1)
    ),
    st.builds(lambda text, ident: said("tool", text, tool_call_id=ident), words, words),
    st.builds(lambda text: said("assistant", text, weight=0), replies),
)
turns = st.lists(plain_turns | tool_turns, min_size=1, max_size=5).filter(
    lambda made: any(turn["role"] == "assistant" for turn in made)
)
conversations = st.builds(
    lambda made, offered, others: with_columns({"messages": made} | ({"tools": offered} if offered else {}), others),
    turns,
    st.lists(tools, max_size=2),
    columns,
)
texts = st.builds(lambda text, others: with_columns({"text": text}, others), replies, columns)
prompts = st.lists(plain_turns, max_size=2).map(lambda made: [*made, said("user", "q")])
answered = st.lists(replies, min_size=2, max_size=2, unique=True)
pairs = st.builds(
    lambda asked, made, others: with_columns(
        {"prompt": asked, "chosen": [said("assistant", made[0])], "rejected": [said("assistant", made[1])]}, others
    ),
    prompts,
    answered,
    columns,
)
judgements = st.builds(
    lambda asked, reply, label, others: with_columns(
        {"prompt": asked, "completion": [said("assistant", reply)], "label": label}, others
    ),
    prompts,
    replies,
    st.booleans(),
    columns,
)
exchanges = st.builds(
    lambda question, answer, others: with_columns(
        {"messages": [said("user", question), said("assistant", answer)]}, others
    ),
    words,
    replies,
    harmless,
)
alternating = st.builds(
    lambda system, exchanged, others: with_columns(
        {
            "messages": [
                *([said("system", system)] if system else []),
                *(
                    said(role, text)
                    for pair in exchanged
                    for role, text in zip(("user", "assistant"), pair, strict=True)
                ),
            ]
        },
        others,
    ),
    words,
    st.lists(st.tuples(words, replies), min_size=1, max_size=3),
    harmless,
)


def there_and_back(shape: str, canonical: dict[str, Any]) -> None:
    """Through JSON, as a file would have it."""
    row = json.loads(json.dumps(detect_format.load(shape).revert(canonical), ensure_ascii=False))
    assert detect_format.convert(shape, row) == [canonical]


@SETTINGS
@given(conversations | texts | pairs | judgements)
def test_a_canonical_row_is_its_own_canonical_row(canonical: dict[str, Any]) -> None:
    shape = next(
        name
        for name, key in (("preference", "chosen"), ("kto", "label"), ("messages", "messages"), ("text", "text"))
        if key in canonical
    )
    assert detect_format.convert(shape, json.loads(json.dumps(canonical))) == [canonical]


@SETTINGS
@given(conversations)
def test_messages_hold_every_conversation_with_any_columns(canonical: dict[str, Any]) -> None:
    there_and_back("messages", canonical)


@SETTINGS
@given(texts)
def test_text_holds_every_text(canonical: dict[str, Any]) -> None:
    there_and_back("text", canonical)


@SETTINGS
@given(pairs)
def test_preference_holds_every_pair(canonical: dict[str, Any]) -> None:
    there_and_back("preference", canonical)


@SETTINGS
@given(judgements)
def test_kto_holds_every_judgement(canonical: dict[str, Any]) -> None:
    there_and_back("kto", canonical)


@SETTINGS
@given(alternating)
def test_sharegpt_and_alpaca_hold_all_plain_conversations(canonical: dict[str, Any]) -> None:
    for shape in ("sharegpt", "alpaca"):
        there_and_back(shape, canonical)


@SETTINGS
@given(turns, st.lists(tools, max_size=2), harmless)
def test_sharegpt_holds_tools_and_calls_unless_words_stand_beside_them(
    made: list[dict[str, Any]], offered: list[dict[str, Any]], others: dict[str, Any]
) -> None:
    canonical = with_columns({"messages": made} | ({"tools": offered} if offered else {}), others)
    if any(turn["content"] and "tool_calls" in turn for turn in made):
        with pytest.raises(ValueError, match="both the words and the tool calls of turn"):
            detect_format.load("sharegpt").revert(canonical)
    else:
        there_and_back("sharegpt", canonical)


@SETTINGS
@given(exchanges)
def test_single_exchanges_go_into_every_shape_of_questions_and_answers(canonical: dict[str, Any]) -> None:
    for shape in ("messages", "sharegpt", "alpaca", "prompt_completion", "content_summary"):
        there_and_back(shape, canonical)
    question = canonical["messages"][0]["content"]
    if "\nInput: " not in question and "\nAnswer: " not in question:
        there_and_back("context_target", canonical)


@SETTINGS
@given(conversations | texts | pairs | judgements, st.sampled_from(sorted(FORMATS)))
def test_whatever_a_shape_takes_comes_back_and_the_rest_is_refused(canonical: dict[str, Any], shape: str) -> None:
    try:
        row = detect_format.load(shape).revert(canonical)
    except ValueError as error:
        assert str(error)
        return
    assert canonical in detect_format.convert(shape, row)


@pytest.mark.parametrize(("shape", "row", "expected"), GOOD)
def test_every_known_spelling_comes_back_as_the_same_row(
    shape: str, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    if shape == "prompt_completion" and isinstance(row.get("prompt"), list):
        with pytest.raises(ValueError, match="cannot hold the weight of turn 2"):
            detect_format.load(shape).revert(expected)
        return
    there_and_back(shape, expected)


CONVERSATIONAL = ("alpaca", "sharegpt", "messages", "prompt_completion", "context_target", "content_summary")


@pytest.mark.parametrize("shape", CONVERSATIONAL)
@pytest.mark.parametrize("through", ("messages", "sharegpt"))
def test_sample_rows_survive_another_shape(shape: str, through: str) -> None:
    lines = (find_bundled("data") / f"samples/{shape}.jsonl").read_text(encoding="utf-8").splitlines()
    came = 0
    for row in map(json.loads, lines):
        (canonical,) = detect_format.convert(shape, row)
        try:
            other = detect_format.load(through).revert(canonical)
        except ValueError as error:
            assert "both the words and the tool calls" in str(error)
            continue
        back = detect_format.load(shape).revert(detect_format.convert(through, other)[0])
        assert detect_format.convert(shape, back) == [canonical]
        if not row.get("input") and "Input: " not in row.get("context", "") and "system" not in row:
            assert back == row  # not only what it says: the row as it stood
        came += 1
    assert came >= len(lines) - 1


def test_a_whole_graph_comes_back_from_its_first_task_and_from_no_other() -> None:
    row = {**GRAPH, "category": "logic"}
    whole, *others = detect_format.convert("thought_graph", row)
    (again,) = detect_format.convert("alpaca", detect_format.load("alpaca").revert(whole))
    assert detect_format.load("thought_graph").revert(again) == row
    for other in others:
        with pytest.raises(ValueError, match="holds whole graphs"):
            detect_format.load("thought_graph").revert(other)


@pytest.mark.parametrize(
    ("shape", "canonical", "reason"),
    [
        ("messages", {"text": "t"}, "messages cannot hold plain text"),
        ("text", {"messages": [said("user", "q"), said("assistant", "a")]}, "text cannot hold conversations"),
        ("alpaca", {"prompt": [], "chosen": [], "rejected": []}, "alpaca cannot hold preference pairs"),
        ("preference", {"prompt": [], "completion": [], "label": True}, "preference cannot hold single judgements"),
        (
            "alpaca",
            {"messages": [said("user", "q"), said("assistant", "a")], "tools": [{}]},
            "alpaca cannot hold tools",
        ),
        ("alpaca", {"messages": [said("assistant", "a")]}, "questions and answers in turn, not assistant"),
        (
            "content_summary",
            {"messages": [said("system", "s"), said("user", "q"), said("assistant", "a")]},
            "one question and its answer, not the turns system, user, assistant",
        ),
        (
            "prompt_completion",
            {"messages": [said("user", "q"), said("assistant", "a", weight=0)]},
            "cannot hold the weight of turn 2",
        ),
        (
            "alpaca",
            {"messages": [said("user", "q"), said("assistant", "a")], "columns": {"input": "x"}},
            "alpaca has a meaning of its own for the column input",
        ),
        (
            "alpaca",
            {"messages": [said("user", "q"), said("assistant", "a")], "columns": {"ok": 1, "system": "x"}},
            "alpaca has a meaning of its own for the column system",
        ),
    ],
)
def test_what_a_shape_cannot_hold_is_named(shape: str, canonical: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        detect_format.load(shape).revert(canonical)
