"""The thought-graph task: scores worked out by hand, its schema, and the sample sets."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from engine.config.bundled import find_bundled
from engine.tasks import thought_graph


def graphs(name: str) -> list[dict[str, Any]]:
    path = find_bundled("data") / "samples" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without(graph: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in graph.items() if name != key}


def test_scores_of_whole_and_of_broken_graphs() -> None:
    graph = graphs("thought_graph")[0]  # 2 standpoints of 2 arguments each, 2 counter-questions
    twice = copy.deepcopy(graph)
    twice["counter_questions"][1]["id"] = twice["counter_questions"][0]["id"]
    replies = [
        thought_graph.write_graph(graph),
        f"```json\n{json.dumps(twice)}\n```",  # JSON with its keys, an id twice
        json.dumps(without(graph, "counter_questions")),  # 2 standpoints, 4 arguments
        '["a list"]',
        "no JSON at all",
    ]
    scores = thought_graph.TASK.score(replies, [thought_graph.write_graph(graph)] * 5)
    assert scores == {
        "json_validity": 4 / 5,
        "schema_validity": 1 / 5,
        "required_keys": 2 / 5,
        "unique_ids": 2 / 5,
        "standpoints_per_graph": 2.0,
        "arguments_per_graph": 4.0,
        "counter_questions_per_graph": pytest.approx(4 / 3),
    }
    assert set(thought_graph.TASK.score([], [])) == set(scores)


@pytest.mark.parametrize(
    ("value", "keyed"),
    [
        ({"question": "?", "standpoints": "two", "counter_questions": [None, 3]}, True),
        ({"question": "?", "standpoints": [{"id": " ", "text": "b"}], "counter_questions": []}, False),
        ({"question": "?", "standpoints": [{"id": [], "text": "b", "arguments": [{"id": {}, "text": ""}]}]}, False),
        ({}, False),
        (None, False),
    ],
)
def test_any_json_reply_is_counted(value: object, keyed: bool) -> None:
    reference = thought_graph.write_graph(graphs("thought_graph")[0])
    scores = thought_graph.TASK.score([json.dumps(value)], [reference])
    assert (scores["json_validity"], scores["schema_validity"], scores["unique_ids"]) == (1, 0, 0)
    assert scores["required_keys"] == keyed


def test_a_reference_that_is_no_graph_is_an_error() -> None:
    with pytest.raises(ValueError, match="reference 0 is not a thought graph"):
        thought_graph.TASK.score(["{}"], ["- an argument"])


def test_only_rows_of_whole_graphs_are_of_the_task() -> None:
    assert thought_graph.concerns({}) and thought_graph.concerns({"task_type": "thought_graph"})
    assert not thought_graph.concerns({"task_type": "arguments"})


@pytest.mark.parametrize("name", ["thought_graph", "thought_graph_zh"])
def test_the_samples_score_full_marks_and_fit_the_schema(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    texts = [thought_graph.write_graph(graph) for graph in graphs(name)]
    scores = thought_graph.TASK.score(texts, texts)
    assert [scores[key] for key in list(scores)[:4]] == [1, 1, 1, 1]
    assert scores["standpoints_per_graph"] >= 2 and scores["counter_questions_per_graph"] >= 1
    for text in texts:
        jsonschema.validate(json.loads(text), thought_graph.SCHEMA)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(without(json.loads(text), "question"), thought_graph.SCHEMA)
