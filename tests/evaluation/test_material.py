"""The questions of an evaluation set, and their references."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.evaluation.dataset import EvaluationSet, read_source
from engine.protocol.home import Home
from engine.tasks import triples


def material(source: str, home: Home, limit: int | None = None) -> EvaluationSet:
    return read_source(source, "auto", limit, home, Path("/"), lambda *_: None)


def test_every_format_has_questions(bare_home: Home) -> None:
    counts = {}
    for name in (
        "alpaca",
        "sharegpt",
        "messages",
        "prompt_completion",
        "context_target",
        "content_summary",
        "preference",
        "kto",
        "text",
    ):
        found = material(f"samples/{name}.jsonl", bare_home)
        questions = found.questions(None, None)
        counts[name] = len(questions), len(found.rows)
        for question in questions:
            assert question.prompt[-1]["role"] != "assistant" and question.reference is not None and question.text
    assert counts["text"] == (0, 12), "nothing can be asked of plain text"
    assert counts["alpaca"] == (16, 16) and counts["preference"] == (12, 12)
    asked, rows = counts["kto"]
    bad = material("samples/kto.jsonl", bare_home).notes()
    assert 0 < asked < rows and bad == [
        (
            f"{rows - asked} rows have a reply that is labelled bad: their loss counts, "
            "and no replies are generated for them"
        )
    ]


def test_a_preferred_reply_is_the_reference(bare_home: Home) -> None:
    found = material("samples/preference.jsonl", bare_home, 3)
    assert len(found.rows) == 3 and found.are_pairs
    assert [question.reference for question in found.questions(None, None)] == [
        row["chosen"][-1]["content"] for row in found.rows
    ]


def test_questions_are_of_the_task_and_limited(bare_home: Home) -> None:
    graphs = material("samples/thought_graph.jsonl", bare_home)
    questions = graphs.questions("thought_graph", None)
    assert len(questions) == 10 < len(graphs.rows), "a graph's further tasks are rows of their own"
    assert [question.row for question in graphs.questions("thought_graph", 2)] == [each.row for each in questions[:2]]
    assert graphs.questions("thought_graph", 0) == []
    chat = material("samples/text.jsonl", bare_home, 2)
    (first, _) = chat.questions("triples", None)
    assert first.prompt == triples.messages(chat.rows[0]["text"]) and first.reference is None


def test_rows_with_tools_have_no_questions(bare_home: Home, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    found = EvaluationSet("x", [row, row | {"tools": [tool]}])
    assert [question.row for question in found.questions(None, None)] == [0]
    assert found.notes() == ["1 rows have tools: no replies are generated for them"]
    with pytest.raises(ValueError, match="has no row of the task thought_graph"):
        EvaluationSet("x", [row | {"columns": {"task_type": "arguments"}}]).questions("thought_graph", None)


def test_the_hash_depends_on_the_rows_content(bare_home: Home, tmp_path: Path) -> None:
    first = material("samples/alpaca.jsonl", bare_home)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((Path(__file__).parents[2] / "data/samples/alpaca.jsonl").read_bytes())
    assert material(str(copy), bare_home).sha256 == first.sha256
    assert material("samples/alpaca.jsonl", bare_home, 5).sha256 != first.sha256
