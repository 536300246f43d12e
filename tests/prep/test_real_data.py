"""Real sets through detection, conversion, other shapes and rendering. They are no part of the checkout: they lie
beside it.

Without them these tests skip, saying so; where `CI` is `true` they fail, for then somebody counts on them.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.options.data import SourceOptions
from engine.prep import detect_format
from engine.prep import read_rows as rows
from engine.prep.chat_labels import Renderer
from engine.prep.rendered import Refusal, Rendering
from engine.prep.rows import Rejects, Row
from engine.prep.token_rows import UNLIMITED, Counts
from engine.prep.tokenize import make_row_tokenizer
from engine.tasks import thought_graph
from engine.tasks.fences import load_json

FOLDER = Path(__file__).resolve().parents[3] / "shared/data"


class Set(NamedTuple):
    file: str
    shape: str
    rows: int
    canonical: int
    bad: tuple[str, ...] = ()


SETS = (
    Set("spo_zh.jsonl", "context_target", 902, 902),
    # One of its questions, on reason, has no counter-questions.
    Set("thought_graphs_zh_01.json", "thought_graph", 21, 80, ("the graph lacks counter_questions",)),
    Set("thought_graphs_zh_02.json", "thought_graph", 17, 69),
    Set("alpaca_en_demo.json", "alpaca", 999, 999),
    Set("dpo_en_demo.json", "preference", 300, 300),
    Set("c4_demo.jsonl", "text", 300, 300),
)


def locate(file: str) -> Path:
    path = FOLDER / file
    if not path.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing, and CI must not pass without it")
        pytest.skip(f"the real data is not beside this checkout: {path}")
    return path


def read(file: str, **source: Any) -> tuple[list[Row], Rejects]:
    rejects = Rejects(lambda _: None)
    options = SourceOptions(source=str(locate(file)), **source)
    return list(rows.read([options], FOLDER, rejects, 1, lambda _: None)), rejects


def source_rows(file: str) -> list[dict[str, Any]]:
    text = locate(file).read_text(encoding="utf-8")
    return json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def test_missing_data_is_a_failure_in_ci_and_a_skip_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must not pass without it"):
        locate("nothing.jsonl")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="is not beside this checkout"):
        locate("nothing.jsonl")


def test_every_file_that_is_there_is_tested() -> None:
    locate(SETS[0].file)
    found = {path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".jsonl")}
    assert found == {each.file for each in SETS}


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.file)
def test_the_shape_is_found_and_all_rows_convert_but_those_that_are_bad(each: Set) -> None:
    found, rejects = read(each.file)
    assert rows.find_format(SourceOptions(source=each.file), locate(each.file)) == each.shape
    assert (rejects.read, len(found), rejects.count) == (each.rows, each.canonical, len(each.bad))
    assert all(reason in told for reason, told in zip(each.bad, rejects.first, strict=True))
    assert all(detect_format.detect([row]) == each.shape for row in source_rows(each.file))


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.file)
def test_rows_survive_every_shape_that_holds_them(each: Set) -> None:
    held = {
        "context_target": {"messages", "sharegpt", "alpaca", "prompt_completion", "context_target", "content_summary"},
        "preference": {"preference"},
        "text": {"text"},
    }
    found, _ = read(each.file)
    for shape in held.get(each.shape, held["context_target"]):
        load = detect_format.load(shape)
        for row in found:
            through = json.loads(json.dumps(load.revert(row.content), ensure_ascii=False))
            assert detect_format.convert(shape, through) == [row.content]


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.file)
def test_rows_come_back_as_they_stood(each: Set) -> None:
    load, compared = detect_format.load(each.shape), 0
    for row in source_rows(each.file):
        if each.bad and "counter_questions" not in row:
            continue
        back = load.revert(detect_format.convert(each.shape, row)[0])
        if each.shape == "preference":  # as prompt, chosen and rejected
            assert detect_format.convert(each.shape, back) == detect_format.convert(each.shape, row)
        elif not row.get("input") and "\nInput: " not in row.get("context", ""):
            assert back == row
        else:  # the input stands with the instruction
            assert row.get("input", "") in back.get("instruction", back.get("context", ""))
        compared += 1
    assert compared == each.rows - len(each.bad)


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.file)
def test_everything_renders_as_apply_chat_template_does(each: Set, tokenizer: Any) -> None:
    found, _ = read(each.file)
    contents = [row.content for row in found]
    if each.shape == "preference":
        results = Renderer(tokenizer, "assistant").render(contents)
        assert {result.reason for result in results if isinstance(result, Refusal)} == {
            "these are preference pairs: they train with method.kind dpo, orpo or reward"
        }
        contents = [{"messages": pair["prompt"] + pair["chosen"]} for pair in contents]
    results = Renderer(tokenizer, "all" if each.shape == "text" else "assistant").render(contents)
    assert len(results) == len(contents)
    for content, result in zip(contents, results, strict=True):
        assert isinstance(result, Rendering), result
        (sequence,) = result.sequences
        if each.shape == "text":
            assert sequence.text == content["text"] + tokenizer.eos_token
            continue
        assert sequence.text == tokenizer.apply_chat_template(content["messages"], tokenize=False)
        replies = [turn["content"] for turn in content["messages"] if turn["role"] == "assistant"]
        assert [sequence.text[start:end] for start, end in sequence.spans] == [
            f"{reply}<|im_end|>" for reply in replies
        ]


def test_sentences_to_triples_are_instruction_input_and_fenced_json() -> None:
    found, _ = read("spo_zh.jsonl")
    triples = 0
    for row in found:
        question, reply = (message["content"] for message in row.content["messages"])
        assert not question.startswith("Instruction:") and "Answer:" not in question
        if reply.startswith("```json"):
            value = load_json(reply)
            assert all(
                each.keys() == {"subject", "subject_type", "predicate", "object", "object_type"} for each in value
            )
            triples += 1
    assert triples == 500


def test_thought_graphs_become_whole_graphs_arguments_and_counter_questions_in_chinese() -> None:
    for file in ("thought_graphs_zh_01.json", "thought_graphs_zh_02.json"):
        found, _ = read(file)
        tasks: dict[str, int] = {}
        for row in found:
            task = row.content["columns"]["task_type"]
            tasks[task] = tasks.get(task, 0) + 1
            question, reply = (message["content"] for message in row.content["messages"])
            assert "问题：" in question and "Question" not in question
            assert (thought_graph.parse(reply) is not None) == (task == "thought_graph")
        assert tasks["thought_graph"] == tasks["counter_question"] and tasks["arguments"] >= 2 * tasks["thought_graph"]


def test_real_pairs_are_the_template_s_own_text_with_both_replies(tokenizer: Any) -> None:
    found, _ = read("dpo_en_demo.json")
    contents = [row.content for row in found]
    counts = Counts()
    batch = make_row_tokenizer("pairs", tokenizer, "assistant", UNLIMITED)(contents, counts)
    assert (batch.rows, batch.refused, counts.ended) == (list(range(300)), {}, 300)
    parts = []
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        values, lengths = batch.columns[name]
        at = [0, *itertools.accumulate(lengths)]
        parts.append([values[begin:end].tolist() for begin, end in itertools.pairwise(at)])
    for content, prompt, chosen, rejected in zip(contents, *parts, strict=True):
        for name, ids in (("chosen", chosen), ("rejected", rejected)):
            assert prompt + ids == tokenizer.apply_chat_template(content["prompt"] + content[name], return_dict=False)
