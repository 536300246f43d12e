"""Thought graphs: a question, standpoints with their arguments, counter-questions (the schema is in
`engine.tasks.thought_graph`).

A row expands into one row per task: the whole graph from the question, the arguments of each standpoint, and the
counter-questions. The column `task_type` names the task (`thought_graph`, `arguments`, `counter_question`), unless the
source row has that column.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    add_columns,
    check_json,
    make_conversation,
    make_message,
    require_messages,
)
from engine.prep.formats.cells import parse_cell
from engine.tasks import thought_graph
from engine.tasks.fences import load_json

EXPANDS = True
COLUMNS = frozenset(thought_graph.KEYS)
_TASKS = ("thought_graph", "arguments", "counter_question")


def matches(row: dict[str, Any]) -> bool:
    return "question" in row and isinstance(parse_cell(row.get("standpoints")), list)


def convert(row: dict[str, Any]) -> list[Canonical]:
    there = {key: row[key] if key == "question" else parse_cell(row[key]) for key in thought_graph.KEYS if key in row}
    graph: dict[str, Any] = check_json(there, "the graph")
    if fault := thought_graph.fault(graph):
        raise ValueError(fault)
    question = graph["question"]
    found = [_make_row(row, _TASKS[0], thought_graph.messages(question), thought_graph.write_graph(graph))]
    for standpoint in graph["standpoints"]:
        turns = thought_graph.ask_arguments(question, standpoint["text"])
        found.append(_make_row(row, _TASKS[1], turns, thought_graph.write_list(standpoint["arguments"])))
    turns = thought_graph.ask_counter_questions(question)
    found.append(_make_row(row, _TASKS[2], turns, thought_graph.write_list(graph["counter_questions"])))
    return found


def _make_row(row: dict[str, Any], task: str, turns: list[dict[str, str]], reply: str) -> Canonical:
    marked = row if thought_graph.COLUMN in row else {**row, thought_graph.COLUMN: task}
    return add_columns(make_conversation([*turns, make_message("assistant", reply)]), marked, COLUMNS)


def revert(canonical: Canonical) -> dict[str, Any]:
    """The graph, from the row that asks for the whole graph; the rows of the other tasks cannot be reverted."""
    messages = require_messages(canonical, "thought_graph")
    try:
        graph = load_json(messages[-1]["content"])
    except ValueError:
        raise ValueError("thought_graph holds whole graphs; this reply is not one")
    if fault := thought_graph.fault(graph):
        raise ValueError(f"thought_graph holds whole graphs: {fault}")
    columns = canonical.get("columns", {})
    if columns.get(thought_graph.COLUMN) == _TASKS[0]:
        columns = {name: value for name, value in columns.items() if name != thought_graph.COLUMN}
    if twice := sorted(columns.keys() & COLUMNS):
        raise ValueError(f"thought_graph has a meaning of its own for the column {', '.join(twice)}")
    row: dict[str, Any] = {**graph, **columns}
    if convert(row)[0] != canonical:
        raise ValueError("thought_graph would ask for this graph with another prompt")
    return row
