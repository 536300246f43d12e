"""What the first rows of the sources say before a launch is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.prep import first_rows
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

TRIPLE = {"subject": "a", "subject_type": "b", "predicate": "c", "object": "d", "object_type": "e"}
ANSWER = json.dumps([TRIPLE])


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def say(question: str, reply: str) -> dict[str, Any]:
    return {"prompt": question, "completion": reply}


def refused(text: str, folder: Path) -> list[tuple[str, str]]:
    """The keys and messages with which a launch is refused; the profile itself is valid."""
    parse(text, "p.yaml", folder)
    try:
        parse(text, "p.yaml", folder, rows=True)
    except ProfileError as error:
        assert error.code == "profile.rows" and all(issue.line for issue in error.issues)
        return [(issue.key, issue.message) for issue in error.issues]
    return []


def test_a_small_source_with_too_many_bad_rows_is_refused_as_preparing_would(tmp_path: Path) -> None:
    write(tmp_path / "my.jsonl", [*([say("q", "a")] * 55), *(['{"prompt": 3}\n'] * 4)])
    ((key, message),) = refused("data: {train: my.jsonl}", tmp_path)
    assert key == "data.train"
    assert message.startswith("4 of 59 rows are bad (6.8 %), above data.max_rejected (1 %): my.jsonl:56: ")
    assert refused("data: {train: my.jsonl, max_rejected: 0.07}", tmp_path) == []
    assert refused("data: {train: [{source: my.jsonl, max_rows: 55}]}", tmp_path) == []
    write(tmp_path / "empty.jsonl", [*([say("q", "a")] * 9), say("q", "")])
    assert len(refused("data: {train: empty.jsonl}", tmp_path)) == 1
    assert refused("data: {train: empty.jsonl, clean: {}}", tmp_path) == []


def test_rows_without_a_single_label_are_refused(tmp_path: Path) -> None:
    masked = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}
    write(tmp_path / "t.jsonl", [masked] * 9)
    ((key, message),) = refused("data: {train: t.jsonl}", tmp_path)
    assert key == "data.train" and "in all 9 rows each assistant turn has the weight 0 (t.jsonl:1 " in message
    for method in ("{kind: sft, loss_on: all}", "{kind: pretrain}"):  # all tokens are trained, whatever the weight
        assert refused(f"data: {{train: t.jsonl}}\nmethod: {method}", tmp_path) == []
    asked, reply = masked["messages"]
    write(tmp_path / "t.jsonl", [*[masked] * 9, {"messages": [asked, {**reply, "weight": 1}]}])
    assert refused("data: {train: t.jsonl}", tmp_path) == []
    write(tmp_path / "t.jsonl", [{"text": "all of it is trained"}])
    assert refused("data: {train: t.jsonl}", tmp_path) == []


def test_rows_that_no_format_fits_are_refused_at_their_source(tmp_path: Path) -> None:
    write(tmp_path / "good.jsonl", [say("q", "a")])
    write(tmp_path / "odd.jsonl", [{"x": 1}])
    ((key, message),) = refused("data:\n  train:\n    - good.jsonl\n    - odd.jsonl\n", tmp_path)
    assert key == "data.train.1" and "no known format has the columns x" in message


def test_a_large_source_is_read_at_its_start_alone(tmp_path: Path) -> None:
    text, good = "data: {train: large.jsonl}", say("q", "a")
    write(tmp_path / "large.jsonl", [*([good, {"prompt": 3}] * 500), *([good] * 20_000)])
    assert refused(text, tmp_path) == []
    data = parse(text, "p.yaml", tmp_path).data
    found = first_rows.read_first(data.train[0], data, tmp_path, "train")
    assert (found.read, len(found.bad), found.whole) == (first_rows.MOST_ROWS, 500, False)
    write(tmp_path / "large.jsonl", [say("q " * 20_000, "a")] * 100)
    found = first_rows.read_first(data.train[0], data, tmp_path, "train")
    assert found.read * 40_000 < first_rows.MOST_BYTES + 80_000 and not found.whole


def test_of_many_sources_the_first_are_read(tmp_path: Path) -> None:
    for number in range(first_rows.MOST_SOURCES + 5):
        write(tmp_path / f"{number}.jsonl", [say("q", "a") if number < first_rows.MOST_SOURCES else {"x": 1}])
    names = [f"{number}.jsonl" for number in range(first_rows.MOST_SOURCES + 5)]
    assert refused(f"data: {{train: {json.dumps(names)}}}", tmp_path) == []
    assert len(refused(f"data: {{train: {json.dumps(names[::-1])}}}", tmp_path)) == 5


def test_held_out_rows_that_cleaning_may_drop_are_left_to_it(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [say("q", ANSWER)] * 3)
    write(tmp_path / "held.jsonl", [say("q", ANSWER), say("q", "Paris")])
    profile = "data: {train: t.jsonl, validation: held.jsonl%s}\nevaluation: {task: triples}"
    assert len(refused(profile % "", tmp_path)) == 1 and refused(profile % ", clean: {}", tmp_path) == []


def test_held_out_replies_that_the_task_cannot_score_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [say("q", ANSWER)] * 3)
    write(tmp_path / "held.jsonl", [say("q", ANSWER), say("q", f"<think>hm</think>{ANSWER}"), say("q", "Paris")])
    profile = "data: {train: train.jsonl, validation: held.jsonl}\nevaluation: {task: triples, samples: %d}"
    ((key, message),) = refused(profile % 3, tmp_path)
    assert key == "evaluation.task"
    assert message.startswith("the reply of held.jsonl:3 is not a JSON list of triples: 'Paris'; triples scores")
    assert refused(profile % 2, tmp_path) == []


def test_rows_to_split_off_are_refused_if_none_can_be_scored(tmp_path: Path) -> None:
    profile = "data: {train: t.jsonl, split: {validation: 0.2}}\nevaluation: {task: triples}"
    write(tmp_path / "t.jsonl", [say("q", "Paris")] * 20)
    assert [key for key, _ in refused(profile, tmp_path)] == ["evaluation.task"]
    write(tmp_path / "t.jsonl", [*([say("q", "Paris")] * 20), say("q", ANSWER)])
    assert refused(profile, tmp_path) == []


@pytest.mark.parametrize("part", ["validation", "test"])
def test_preparing_looks_at_all_replies_that_will_be_scored(tmp_path: Path, home: Home, part: str) -> None:
    write(tmp_path / "train.jsonl", [say("q", ANSWER)] * 3)
    write(tmp_path / "held.jsonl", [say("q", ANSWER), say("q", "Paris")])
    text = f"data: {{train: train.jsonl, {part}: held.jsonl}}\nevaluation: {{task: triples}}"
    with pytest.raises(ProblemError) as caught:
        prepare(parse(text, "p.yaml", tmp_path, home=home), home, lambda *_: None)
    assert caught.value.problem.code == "data.rows.misfit"
    assert f"the reply of row 2 of {part} is not a JSON list of triples" in caught.value.problem.cause


def test_an_answer_behind_thoughts_in_unknown_marks_may_be_one() -> None:
    assert first_rows.describe_misfit(f"<|thought|>hm<|done|>{ANSWER}", "triples") == ""
    assert "is not a JSON list" in first_rows.describe_misfit("see [1]", "triples")
