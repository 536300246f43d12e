"""Shapes: what each becomes, what each refuses, which is found."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from engine.config.bundled import find_bundled
from engine.prep import detect_format
from engine.prep.formats import FORMATS
from engine.tasks import thought_graph


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


Q, A, S = said("user", "q"), said("assistant", "a"), said("system", "s")
B = said("assistant", "b")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("messages", {"messages": [S, Q, A]}, {"messages": [S, Q, A]}),
    ("messages", {"messages": [Q, A], "tools": None}, {"messages": [Q, A]}),
    ("messages", {"messages": [Q, A | {"tool_calls": None, "name": "n"}]}, {"messages": [Q, A | {"name": "n"}]}),
    ("messages", {"messages": [said("user", [{"type": "text", "text": "q"}]), A]}, {"messages": [Q, A]}),  # type: ignore[arg-type]
    (
        "messages",
        {
            "messages": [
                Q,
                {"role": "assistant", "content": None, "tool_calls": [call(x=1) | {"id": "c1"}]},
                said("tool", "r", tool_call_id="c1"),
                A,
            ],
            "tools": [TOOL],
        },
        {
            "messages": [
                Q,
                said("assistant", "", tool_calls=[call(x=1) | {"id": "c1"}]),
                said("tool", "r", tool_call_id="c1"),
                A,
            ],
            "tools": [TOOL],
        },
    ),
    (  # arguments as JSON text, the type of the call left out, the tool alone
        "messages",
        {
            "messages": [
                Q,
                said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": '{"x": 1, "y": "二"}'}}]),
            ],
            "tools": [TOOL["function"]],
        },
        {"messages": [Q, said("assistant", "", tool_calls=[call(x=1, y="二")])], "tools": [TOOL]},
    ),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, {"messages": [Q, A]}),
    ("alpaca", {"instruction": "q", "input": "more", "output": "a"}, {"messages": [said("user", "q\nmore"), A]}),
    (
        "alpaca",
        {
            "instruction": "q",
            "output": "a",
            "system": "s",
            "history": [["old", "reply"]],
            "category": "kept",
            "task_type": None,
        },
        {
            "messages": [S, said("user", "old"), said("assistant", "reply"), Q, A],
            "columns": {"category": "kept", "task_type": None},
        },
    ),
    ("sharegpt", {"conversations": [human("q"), gpt("a")]}, {"messages": [Q, A]}),
    ("sharegpt", {"system": "s", "conversations": [Q, A], "id": 7}, {"messages": [S, Q, A], "columns": {"id": 7}}),
    (
        "sharegpt",
        {
            "conversations": [
                human("q"),
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "r"},
                gpt("a"),
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        {"messages": [Q, said("assistant", "", tool_calls=[call(x=1)]), said("tool", "r"), A], "tools": [TOOL]},
    ),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, {"messages": [Q, A]}),
    ("prompt_completion", {"question": "q", "answer": "a", "system": "s"}, {"messages": [S, Q, A]}),
    (
        "prompt_completion",
        {"prompt": [Q, B, Q], "completion": [A]},
        {"messages": [Q, B | {"weight": 0}, Q, A]},
    ),
    (
        "context_target",
        {"context": "Instruction: x\nInput: y\nz\nAnswer: ", "target": "a"},
        {"messages": [said("user", "x\ny\nz"), A]},
    ),
    ("context_target", {"context": "Instruction: x\nAnswer: ", "target": "a"}, {"messages": [said("user", "x"), A]}),
    ("context_target", {"context": "q", "target": "a"}, {"messages": [Q, A]}),
    ("content_summary", {"content": "q", "summary": "a"}, {"messages": [Q, A]}),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": [Q], "chosen": [A], "rejected": [B]}),
    (
        "preference",
        {"system": "s", "question": "q", "chosen": "a", "rejected": "b", "source": "x"},
        {"prompt": [S, Q], "chosen": [A], "rejected": [B], "columns": {"source": "x"}},
    ),
    (
        "preference",
        {"instruction": "q", "input": "more", "chosen": "a", "rejected": "b", "history": [["q", "b"]]},
        {"prompt": [Q, B, said("user", "q\nmore")], "chosen": [A], "rejected": [B]},
    ),
    (
        "preference",
        {"conversations": [human("q")], "chosen": gpt("a"), "rejected": gpt("b")},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
    ),
    (
        "preference",
        {"messages": [S, Q], "chosen": A, "rejected": B, "tools": [TOOL]},
        {"prompt": [S, Q], "chosen": [A], "rejected": [B], "tools": [TOOL]},
    ),
    ("preference", {"chosen": [S, Q, A], "rejected": [S, Q, B]}, {"prompt": [S, Q], "chosen": [A], "rejected": [B]}),
    (
        "preference",
        {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B], "score": 1.5},
        {"prompt": [Q], "chosen": [A], "rejected": [B], "columns": {"score": 1.5}},
    ),
    ("kto", {"messages": [S, Q, A], "label": False}, {"prompt": [S, Q], "completion": [A], "label": False}),
    ("kto", {"prompt": "q", "completion": "a", "label": True}, {"prompt": [Q], "completion": [A], "label": True}),
    ("kto", {"prompt": [Q], "completion": [A], "label": True}, {"prompt": [Q], "completion": [A], "label": True}),
    (
        "kto",
        {"instruction": "q", "input": "", "output": "a", "kto_tag": True, "label": "x"},
        {"prompt": [Q], "completion": [A], "label": True, "columns": {"label": "x"}},
    ),
    (
        "kto",
        {"conversations": [human("q"), gpt("b"), human("q"), gpt("a")], "kto_tag": False},
        {"prompt": [Q, B, Q], "completion": [A], "label": False},
    ),
    ("text", {"text": "t", "url": "u", "score": float("nan")}, {"text": "t", "columns": {"url": "u", "score": None}}),
]


@pytest.mark.parametrize(("shape", "row", "expected"), GOOD)
def test_rows_become_canonical_and_their_shape_is_found(
    shape: str, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert detect_format.detect([row]) == shape
    assert detect_format.convert(shape, row) == [expected]


GRAPH = {
    "question": "Is it so?",
    "standpoints": [
        {"id": "s1", "text": "yes", "arguments": [{"id": "a1", "text": "one"}, {"id": "a2", "text": "two"}]},
        {"id": "s2", "text": "no", "arguments": [{"id": "a3", "text": "three"}]},
    ],
    "counter_questions": [{"id": "c1", "text": "what?"}, {"id": "c2", "text": "why?"}],
}


def test_a_thought_graph_expands_into_its_tasks() -> None:
    assert detect_format.detect([GRAPH]) == "thought_graph"
    rows = detect_format.convert("thought_graph", {**GRAPH, "category": "logic"})
    assert [row["columns"] for row in rows] == [
        {"category": "logic", "task_type": task}
        for task in ("thought_graph", "arguments", "arguments", "counter_question")
    ]
    asked, replies = ([row["messages"][at]["content"] for row in rows] for at in (0, 1))
    assert all("Is it so?" in each for each in asked) and "Standpoint: no" in asked[2]
    assert json.loads(replies[0]) == GRAPH and thought_graph.parse(f"```json\n{replies[0]}\n```") == GRAPH
    assert replies[1:] == ["- one\n- two", "- three", "- what?\n- why?"]


def test_a_graph_is_asked_for_in_its_own_language_and_a_task_type_of_its_own_stays() -> None:
    chinese = {**GRAPH, "question": "真的是这样吗？", "task_type": "own"}
    rows = detect_format.convert("thought_graph", chinese)
    assert "问题：真的是这样吗？" in rows[0]["messages"][0]["content"]
    assert {row["columns"]["task_type"] for row in rows} == {"own"}
    assert "Question: これは本当？" in thought_graph.messages("これは本当？")[0]["content"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": " "}, "question is not text, or empty"),
        ({"standpoints": GRAPH["standpoints"][:1]}, "standpoints: 1 are there, at least 2 are needed"),
        ({"standpoints": [{"id": "s1", "text": "x"}] * 2}, "standpoints 1 is not an object of id, text, arguments"),
        (
            {"standpoints": [{"id": f"s{i}", "text": "x", "arguments": []} for i in (1, 2)]},
            "standpoint 1: arguments: 0",
        ),
        ({"counter_questions": []}, "counter_questions: 0 are there"),
        ({"counter_questions": [{"id": "a3", "text": "x"}]}, "the id a3 is there twice"),
        ({"counter_questions": [{"id": "c1", "text": 3}]}, "counter_questions 1: id or text is not text"),
        ({"counter_questions": "x"}, "counter_questions is not a list"),
    ],
)
def test_graphs_that_do_not_fit_the_schema_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        detect_format.convert("thought_graph", GRAPH | change)


def test_a_graph_without_counter_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="the graph lacks counter_questions"):
        detect_format.convert("thought_graph", {key: GRAPH[key] for key in ("question", "standpoints")})


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": "no"}, "messages is not a list"),
    ("messages", {"messages": []}, "no assistant turn"),
    ("messages", {"messages": [Q]}, "no assistant turn"),
    ("messages", {"messages": [Q, said("assistant", " ")]}, "turn 2 .assistant. is empty"),
    ("messages", {"messages": [Q, said("robot", "a")]}, "turn 2 has the role 'robot'"),
    ("messages", {"messages": [Q, {"role": ["assistant"], "content": "a"}]}, "turn 2 has the role"),
    ("messages", {"messages": [Q, {"role": "assistant", "content": None}]}, "turn 2 .assistant. is missing"),
    ("messages", {"messages": [Q, "a"]}, "turn 2 is text"),
    ("messages", {"messages": [Q, A | {"tool_calls": [{}]}]}, "turn 2, call 1 names no function"),
    ("messages", {"messages": [Q | {"tool_calls": [call()]}, A]}, "turn 1 .user. calls tools"),
    (
        "messages",
        {"messages": [Q, A | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "turn 2, call 1: arguments is not JSON",
    ),
    (
        "messages",
        {"messages": [Q, A | {"tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
        "call 1: arguments are a list, not an object",
    ),
    ("messages", {"messages": [Q, A | {"tool_calls": [call() | {"type": "custom"}]}]}, "call 1 is of type 'custom'"),
    ("messages", {"messages": [Q, A | {"function_call": {"arguments": "{}"}}]}, "turn 2, function_call names no"),
    ("messages", {"messages": [Q, A | {"function_call": {"name": "f"}, "tool_calls": [call()]}]}, "turn 2 has both"),
    ("messages", {"messages": [Q, A | {"weight": 0.5}]}, "turn 2 has the weight 0.5"),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
        "turn 1 holds a part of type 'image_url'",
    ),
    ("messages", {"messages": [Q, A], "tools": [{"x": 1}]}, "tool 1 has no name"),
    ("messages", {"messages": [Q, A], "tools": "{"}, "tools is not JSON"),
    ("messages", {"messages": [Q, said("assistant", "\ud800")]}, "half a surrogate"),
    ("messages", {"messages": [Q, A], "note": ["\ud800"]}, "note holds half a surrogate"),
    ("messages", {"messages": [Q, A], "note": {1, 2}}, "note cannot be represented in JSON"),
    ("sharegpt", {"conversations": [{"from": ["human"], "value": "q"}]}, "turn 1 has the role"),
    ("sharegpt", {"conversations": [human("q"), {"from": "function_call", "value": "f(1)"}]}, "turn 2 .* is not JSON"),
    ("sharegpt", {"system": "s", "conversations": [S, Q, A]}, "a system prompt in the column system and another"),
    ("alpaca", {"instruction": "q", "output": 3}, "output is a number"),
    ("alpaca", {"instruction": "q", "output": "a", "history": ["x"]}, "history is not"),
    ("prompt_completion", {"prompt": "q"}, "is missing"),
    ("context_target", {"context": "q", "target": ""}, "turn 2 .assistant. is empty"),
    ("content_summary", {"content": ["q"], "summary": "a"}, "content is a list"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": ""}, "rejected: turn 1 .assistant. is empty"),
    ("preference", {"prompt": "q", "chosen": "a"}, "rejected is missing"),
    ("preference", {"chosen": "a", "rejected": "b"}, "there is no question"),
    ("preference", {"prompt": "q", "chosen": [Q], "rejected": [A]}, "chosen does not begin with the assistant"),
    ("kto", {"prompt": "q", "completion": "a", "label": "fair"}, "label is 'fair', not one of true/false"),
    ("kto", {"prompt": "q", "completion": "a", "label": 2}, "label is 2, not one of true/false"),
    ("kto", {"messages": [Q, A]}, "label is missing"),
    ("kto", {"messages": [A], "label": True}, "no question before the judged reply"),
    ("kto", {"messages": [Q], "label": True}, "no assistant turn to judge"),
    ("text", {"text": " "}, "text is empty"),
]


@pytest.mark.parametrize(("shape", "row", "reason"), BAD)
def test_bad_rows_are_refused_with_the_reason(shape: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        detect_format.convert(shape, row)


def test_the_shape_of_most_rows_wins_and_none_is_an_error() -> None:
    assert detect_format.detect([{"odd": 1}, {"text": "t"}, {"text": "t"}]) == "text"
    with pytest.raises(ValueError, match="columns foo"):
        detect_format.detect([{"foo": 1}])


def test_a_label_that_is_no_judgement_makes_no_kto_row() -> None:
    assert detect_format.detect([{"instruction": "q", "output": "a", "label": True}]) == "alpaca"
    assert detect_format.detect([{"messages": [Q, A], "label": 3}]) == "messages"


def samples() -> list[tuple[str, str]]:
    catalog = YAML(typ="safe").load(find_bundled("data") / "catalog.yaml")
    return [(file, entry["format"]) for file, entry in catalog["samples"]["files"].items()]


@pytest.mark.parametrize(("file", "shape"), samples())
def test_bundled_samples_have_the_shape_that_the_catalog_says(file: str, shape: str) -> None:
    rows = [json.loads(line) for line in (find_bundled("data") / file).read_text(encoding="utf-8").splitlines()]
    assert 10 <= len(rows) <= 40
    assert detect_format.detect(rows) == shape
    assert all(detect_format.detect([row]) == shape for row in rows)
    assert all(detect_format.convert(shape, row) for row in rows)


def test_there_is_a_sample_of_every_shape_and_every_one_is_listed() -> None:
    listed = dict(samples())
    assert set(listed.values()) == set(FORMATS)
    folder = find_bundled("data") / "samples"
    assert {f"samples/{path.name}" for path in folder.iterdir()} == set(listed)
