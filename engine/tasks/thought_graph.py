"""Thought graphs: a question, standpoints with their arguments, and counter-questions that challenge them.

    {"question": "…",
     "standpoints": [{"id", "text", "arguments": [{"id", "text"}, …]}, …],
     "counter_questions": [{"id", "text"}, …]}

A graph has at least two standpoints, each with an argument, and a counter-question; ids are unique in the graph. The
prompts are Chinese for a question in Chinese, English for any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.protocol.text import name_kind
from engine.tasks.direction import Direction
from engine.tasks.fences import load_json
from engine.tasks.sufficient_stats import Tally, ratio
from engine.tasks.task import Messages, Task
from engine.tasks.views import Outline

KEYS = ("question", "standpoints", "counter_questions")
COLUMN = "task_type"
"""The column that says which of a graph's tasks a row asks for; a row without it asks for the whole graph."""


def _objects(least: int, **further: Any) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    properties = {"id": text, "text": text, **further}
    return {
        "type": "array",
        "minItems": least,
        "items": {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
    }


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "minLength": 1},
        "standpoints": _objects(2, arguments=_objects(1)),
        "counter_questions": _objects(1),
    },
    "required": list(KEYS),
    "additionalProperties": False,
}
"""All rules of `fault` except unique ids and texts that are not blank, which a JSON schema cannot express."""

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_ASK = {
    "en": (
        "Draw the thought graph of this question: its standpoints, the arguments for each, and counter-questions. "
        "Answer with JSON and nothing else.\n\nQuestion: {question}",
        "Give the arguments for this standpoint, one a line.\n\nQuestion: {question}\nStandpoint: {standpoint}",
        "Ask counter-questions that challenge the standpoints on this question, one a line.\n\nQuestion: {question}",
    ),
    "zh": (
        (
            "请为下面的问题画出思维图谱：列出不同的立场、每个立场的论据，以及反问。"
            "只输出 JSON，不要输出其他内容。\n\n问题：{question}"
        ),
        "请给出支持下面这一立场的论据，每行一条。\n\n问题：{question}\n立场：{standpoint}",
        "请针对下面的问题提出反问，对各种立场提出挑战，每行一条。\n\n问题：{question}",
    ),
}


def messages(question: str) -> Messages:
    """The conversation that asks for the whole graph."""
    return _user_turn(_prompts(question)[0].format(question=question))


def ask_arguments(question: str, standpoint: str) -> Messages:
    """The conversation that asks for the arguments of one standpoint; `write_list` writes the reply."""
    return _user_turn(_prompts(question)[1].format(question=question, standpoint=standpoint))


def ask_counter_questions(question: str) -> Messages:
    """The conversation that asks for counter-questions; `write_list` writes the reply."""
    return _user_turn(_prompts(question)[2].format(question=question))


def parse(reply: str) -> dict[str, Any] | None:
    """The graph of a reply, None where it is not JSON or does not fit the schema."""
    try:
        value = load_json(reply)
    except ValueError:
        return None
    return None if fault(value) else value


def concerns(columns: Mapping[str, Any]) -> bool:
    """Whether a row asks for a whole graph, rather than for arguments or counter-questions alone."""
    return columns.get(COLUMN, "thought_graph") == "thought_graph"


def tally(reply: str, reference: str | None) -> Tally:
    """What a reply adds to the sums that `metrics` reads. Raises ValueError for a reference that is no thought
    graph."""
    if reference is not None and parse(reference) is None:
        raise ValueError(f"is not a thought graph: {reference[:80]!r}")
    try:
        value = load_json(reply)
    except ValueError:
        return {"replies": 1}
    standpoints, arguments, questions = _parts(value)
    ids = [item.get("id") for item in (*standpoints, *arguments, *questions)]
    named = bool(ids) and all(_is_text(name) for name in ids)
    return {
        "replies": 1,
        "valid": 1,
        "fitting": not fault(value),
        "keyed": _is_keyed(value),
        "unique": named and len(set(map(str, ids))) == len(ids),
        "graphs": isinstance(value, dict),
        "standpoints": len(standpoints),
        "arguments": len(arguments),
        "counter_questions": len(questions),
    }


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Shares in 0…1 of all replies; counts are means over the replies that are JSON objects, 0 where none is.

    `required_keys`: every object of the reply has the keys that the schema requires. `unique_ids`: no two items of the
    reply share an id, and none lacks one.
    """
    replies, graphs = sums.get("replies", 0), sums.get("graphs", 0)
    return {
        "json_validity": ratio(sums.get("valid", 0), replies),
        "schema_validity": ratio(sums.get("fitting", 0), replies),
        "required_keys": ratio(sums.get("keyed", 0), replies),
        "unique_ids": ratio(sums.get("unique", 0), replies),
        "standpoints_per_graph": ratio(sums.get("standpoints", 0), graphs),
        "arguments_per_graph": ratio(sums.get("arguments", 0), graphs),
        "counter_questions_per_graph": ratio(sums.get("counter_questions", 0), graphs),
    }


def write_graph(graph: dict[str, Any]) -> str:
    """The graph as a reply: JSON without blanks, keys in the order of `KEYS`."""
    return json.dumps({key: graph[key] for key in KEYS}, ensure_ascii=False, separators=(",", ":"))


def write_list(items: list[dict[str, Any]]) -> str:
    """The items' texts as a reply, one a line."""
    return "\n".join(f"- {item['text']}" for item in items)


def fault(value: object) -> str:
    """Why a value is not a thought graph; empty when it is one."""
    if not isinstance(value, dict):
        return f"a thought graph is an object, not {name_kind(value)}"
    if value.keys() != set(KEYS):
        missing, further = set(KEYS) - value.keys(), value.keys() - set(KEYS)
        return (
            f"the graph lacks {', '.join(sorted(missing))}"
            if missing
            else f"{', '.join(sorted(map(str, further)))}: no part of a graph"
        )
    if not _is_text(value["question"]):
        return "question is not text, or empty"
    found = next(_faults(value), "")
    if found:
        return found
    ids = [item["id"] for item in _items(value)]
    twice = next((each for number, each in enumerate(ids) if each in ids[:number]), None)
    return f"the id {twice} is there twice" if twice is not None else ""


def _faults(graph: dict[str, Any]) -> Iterator[str]:
    yield from _list_faults(graph["standpoints"], "standpoints", ("id", "text", "arguments"), 2)
    for number, standpoint in enumerate(graph["standpoints"], 1):
        yield from _list_faults(standpoint["arguments"], f"standpoint {number}: arguments", ("id", "text"), 1)
    yield from _list_faults(graph["counter_questions"], "counter_questions", ("id", "text"), 1)


def _list_faults(items: object, name: str, keys: tuple[str, ...], least: int) -> Iterator[str]:
    if not isinstance(items, list):
        yield f"{name} is not a list"
        return
    if len(items) < least:
        yield f"{name}: {len(items)} are there, at least {least} are needed"
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict) or item.keys() != set(keys):
            yield f"{name} {number} is not an object of {', '.join(keys)}"
            return
        if not _is_text(item["id"]) or not _is_text(item["text"]):
            yield f"{name} {number}: id or text is not text, or empty"


def _parts(value: object) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The objects in the places of standpoints, arguments and counter-questions, whatever else is wrong with the
    value."""
    if not isinstance(value, dict):
        return [], [], []
    standpoints = _objects_of(value.get("standpoints"))
    arguments = [argument for standpoint in standpoints for argument in _objects_of(standpoint.get("arguments"))]
    return standpoints, arguments, _objects_of(value.get("counter_questions"))


def _objects_of(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_keyed(value: object) -> bool:
    standpoints, arguments, questions = _parts(value)
    return (
        isinstance(value, dict)
        and value.keys() >= set(KEYS)
        and all(item.keys() >= {"id", "text", "arguments"} for item in standpoints)
        and all(item.keys() >= {"id", "text"} for item in (*arguments, *questions))
    )


def _items(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for standpoint in graph["standpoints"]:
        yield standpoint
        yield from standpoint["arguments"]
    yield from graph["counter_questions"]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _prompts(question: str) -> tuple[str, str, str]:
    chinese = _CHINESE.search(question) and not _KANA.search(question)
    return _ASK["zh" if chinese else "en"]


def _user_turn(text: str) -> Messages:
    return [{"role": "user", "content": text}]


_SHARES = ("json_validity", "schema_validity", "required_keys", "unique_ids")
_COUNTS = ("standpoints_per_graph", "arguments_per_graph", "counter_questions_per_graph")

TASK = Task(
    messages=messages,
    schema=SCHEMA,
    parse=parse,
    tally=tally,
    metrics=metrics,
    directions=dict.fromkeys(_SHARES, Direction.HIGHER) | dict.fromkeys(_COUNTS, Direction.NEITHER),
    main="schema_validity",
    view=Outline("question", points="standpoints", details="arguments", objections="counter_questions"),
    concerns=concerns,
    expansion="engine.prep.expand.thought_graph",
)
