"""What a source says about its rows: column names, prompt, system prompt; limits, weights and files of a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.options.data import SourceOptions
from engine.prep import column_mapping, read_rows
from engine.prep.rows import Rejects, Row
from engine.protocol.messages import ProblemError
from tests.prep.conftest import write


def read(directory: Path, *sources: dict[str, Any], seed: int = 1) -> tuple[list[Row], Rejects]:
    rejects = Rejects(lambda _: None)
    options = [SourceOptions(**source) for source in sources]
    return list(read_rows.read(options, directory, rejects, seed, lambda _: None)), rejects


def contents(row: Row) -> list[str]:
    return [message["content"] for message in row.content["messages"]]


def test_own_columns_take_the_shapes_names(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"ask": "q", "say": "a", "topic": "t"}, {"ask": "q2", "say": "a2", "topic": "u"})
    found, _ = read(tmp_path, {"source": "a.jsonl", "columns": {"instruction": "ask", "output": "say"}})
    assert [contents(row) for row in found] == [["q", "a"], ["q2", "a2"]]
    assert [row.content["columns"] for row in found] == [{"topic": "t"}, {"topic": "u"}]


def test_a_column_that_has_to_make_way_is_kept_and_names_may_change_places() -> None:
    row = {"input": "the task", "instruction": "the text", "output": "a"}
    swapped, aside = column_mapping.rename_columns(row, {"instruction": "input", "input": "instruction"})
    assert swapped == {"instruction": "the task", "input": "the text", "output": "a"} and not aside
    source = SourceOptions(source="x", columns={"prompt": "question", "completion": "answer"})
    (found,) = column_mapping.make_converter(source, "prompt_completion")(
        {"prompt": "old", "question": "q", "answer": "a"}
    )
    assert found["columns"] == {"prompt": "old"} and found["messages"][0]["content"] == "q"


def test_a_prompt_stands_in_place_of_the_question(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"content": "long {text}", "summary": "short", "n": 3, "tags": ["x", "二"]})
    prompt = "Sum up in {n} words, {{tags}} {tags}:\n{content}"
    found, _ = read(tmp_path, {"source": "a.jsonl", "prompt": prompt, "system": "Be brief."})
    assert contents(found[0]) == ["Be brief.", 'Sum up in 3 words, {tags} ["x", "二"]:\nlong {text}', "short"]


def test_a_prompt_makes_a_question_where_the_shape_would_miss_one(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"sentence": "s", "triples": "[]"})
    source = {
        "source": "a.jsonl",
        "format": "alpaca",
        "columns": {"output": "triples"},
        "prompt": "Extract: {sentence}",
    }
    found, _ = read(tmp_path, source)
    assert contents(found[0]) == ["Extract: s", "[]"]
    assert found[0].content["columns"] == {"sentence": "s"}


def test_prompts_and_system_prompts_of_several_turns_and_of_pairs() -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    source = SourceOptions(source="x", prompt="P {id}", system="S")
    (found,) = column_mapping.make_converter(source, "messages")({"messages": turns, "id": 7})
    assert [turn["content"] for turn in found["messages"]] == ["S", "user", "assistant", "P 7", "assistant"]
    (found,) = column_mapping.make_converter(source, "preference")(
        {"prompt": "q", "chosen": "a", "rejected": "b", "id": 7}
    )
    assert [turn["content"] for turn in found["prompt"]] == ["S", "P 7"]
    (found,) = column_mapping.make_converter(source, "messages")(
        {"messages": [{"role": "system", "content": "own"}, *turns], "id": 7}
    )
    assert found["messages"][0]["content"] == "own"


def test_each_source_has_a_prompt_of_its_own(tmp_path: Path) -> None:
    """Joint training: the same sentences for two tasks."""
    write(tmp_path / "a.jsonl", {"prompt": "x", "completion": "1"})
    write(tmp_path / "b.jsonl", {"prompt": "x", "completion": "2"})
    found, _ = read(
        tmp_path,
        {"source": "a.jsonl", "prompt": "First task: {prompt}"},
        {"source": "b.jsonl", "prompt": "Second task: {prompt}"},
    )
    assert [contents(row)[0] for row in found] == ["First task: x", "Second task: x"]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ({"prompt": "{sentense}"}, "prompt: there is no column {sentense}; there are completion, prompt, sentence"),
        ({"prompt": "a } b"}, "prompt: } at character 3 is not a {column}; write a literal brace twice"),
        ({"prompt": "{}"}, "prompt: {} at character 1 is not a {column}"),
        (
            {"columns": {"output": "repli"}},
            "columns: there is no column 'repli' for output; there are completion, prompt, sentence",
        ),
        ({"columns": {"sentence": "prompts"}}, "columns says the format's name first: {prompts: sentence}"),
        ({"format": "text", "system": "s"}, "prompt and system are for conversations"),
        ({"format": "thought_graph", "prompt": "p"}, "format thought_graph asks several questions"),
    ],
)
def test_what_cannot_be_meant_ends_the_source_with_one_clear_error(
    tmp_path: Path, source: dict[str, Any], cause: str
) -> None:
    write(tmp_path / "a.jsonl", {"prompt": "q", "completion": "a", "sentence": "s"})
    with pytest.raises(ProblemError) as caught:
        read(tmp_path, {"source": "a.jsonl", **source})
    assert cause in caught.value.problem.cause and "a.jsonl" in caught.value.problem.cause


def test_a_row_without_the_prompts_column_is_rejected_and_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"prompt": "q", "completion": "a", "extra": "e"}, {"prompt": "q", "completion": "a"})
    found, rejects = read(tmp_path, {"source": "a.jsonl", "prompt": "{extra}"})
    assert len(found) == 1
    assert rejects.first == ["a.jsonl:2: prompt: the row has no {extra}; it has prompt, completion"]


def test_values_without_a_json_form_never_reach_a_conversation() -> None:
    convert = column_mapping.make_converter(
        SourceOptions(source="x", prompt="{x}", columns={"prompt": "y"}), "prompt_completion"
    )
    for value in ("\ud800", ["\ud800"]):
        with pytest.raises(ValueError, match="half a surrogate pair"):
            convert({"y": "q", "completion": "a", "x": value})
        with pytest.raises(ValueError, match="half a surrogate pair"):
            convert({"y": "q", "completion": "a", "x": "fine", "prompt": value})


def test_rows_of_very_many_columns_do_not_fill_a_message() -> None:
    row = {f"column {number} " + "x" * 1000: 1 for number in range(10_000)}
    with pytest.raises(ValueError) as caught:
        column_mapping.fill_prompt("{absent}", row)
    assert len(str(caught.value)) < 3000


pieces = st.lists(st.text("ab{} 二\n", max_size=6), min_size=2, max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pieces, st.text(max_size=8))
def test_text_and_values_come_out_as_they_are_whatever_braces_they_hold(parts: list[str], value: str) -> None:
    prompt = "{x}".join(part.replace("{", "{{").replace("}", "}}") for part in parts)
    assert column_mapping.fill_prompt(prompt, {"x": value}) == value.join(parts)


# ── files, limits, weights ─────────────────────────────────────────────────────────────────────────────────────────


def numbered(path: Path, *numbers: int) -> Path:
    return write(path, *({"prompt": str(number), "completion": "a"} for number in numbers))


def test_a_folder_and_a_glob_are_read_in_order_with_a_shape_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    numbered(tmp_path / "set/1.jsonl", 1, 2)
    write(
        tmp_path / "set/2.jsonl",
        {"messages": [{"role": "user", "content": "3"}, {"role": "assistant", "content": "a"}]},
    )
    (tmp_path / "set/3.json").write_text(json.dumps([{"instruction": "4", "output": "a"}]), encoding="utf-8")
    (tmp_path / "set/4.jsonl").touch()
    for source in ("set", "set/*.json*"):
        found, rejects = read(tmp_path, {"source": source})
        assert [(Path(row.file).name, row.line, contents(row)[0]) for row in found] == [
            ("1.jsonl", 1, "1"),
            ("1.jsonl", 2, "2"),
            ("2.jsonl", 1, "3"),
            ("3.json", found[3].line, "4"),
        ]
        assert (rejects.read, rejects.count) == (4, 0)


def test_row_limits_count_good_rows_over_all_files_of_a_source(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/1.jsonl", {"prompt": "1", "completion": "a"}, "not JSON", {"prompt": "2", "completion": "a"})
    numbered(tmp_path / "set/2.jsonl", 3, 4)
    found, rejects = read(tmp_path, {"source": "set", "max_rows": 3}, {"source": "set/2.jsonl", "max_rows": 1})
    assert [contents(row)[0] for row in found] == ["1", "2", "3", "3"]
    assert rejects.count == 1


def test_weights_repeat_and_thin_out_by_seed(tmp_path: Path) -> None:
    numbered(tmp_path / "a.jsonl", *range(200))
    twice, _ = read(tmp_path, {"source": "a.jsonl", "weight": 2.0})
    assert [contents(row)[0] for row in twice] == [str(number) for number in range(200) for _ in range(2)]
    half, _ = read(tmp_path, {"source": "a.jsonl", "weight": 0.5})
    assert 70 < len(half) < 130
    assert half == read(tmp_path, {"source": "a.jsonl", "weight": 0.5})[0]
    assert half != read(tmp_path, {"source": "a.jsonl", "weight": 0.5}, seed=2)[0]


def test_a_row_that_expands_keeps_its_place_and_counts_once(tmp_path: Path) -> None:
    from tests.prep.test_formats import GRAPH

    write(tmp_path / "g.jsonl", GRAPH, GRAPH, GRAPH)
    found, rejects = read(tmp_path, {"source": "g.jsonl", "max_rows": 2})
    assert [row.line for row in found] == [1] * 4 + [2] * 4
    assert (rejects.read, rejects.count) == (2, 0)


def test_progress_is_told_in_bytes_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    files = [numbered(tmp_path / f"set/{number}.jsonl", *range(50)) for number in range(3)]
    told: list[int] = []
    options = [SourceOptions(source="set")]
    assert sum(1 for _ in read_rows.read(options, tmp_path, Rejects(lambda _: None), 1, told.append)) == 150
    assert told == sorted(told) and told[-1] == sum(path.stat().st_size for path in files)


def test_a_hub_source_without_a_home_says_when_it_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is on the hub: it is fetched when the data is prepared"):
        read_rows.locate(SourceOptions(source="hf://org/name"), tmp_path)
