"""Rows as published data sets and other trainers write them: each is read as it is meant, or refused by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from engine.options.data import SourceOptions
from engine.prep import column_mapping, dataset_info, detect_format, read_rows
from engine.prep.formats import cells
from engine.prep.formats.canonical import Canonical
from engine.prep.rows import Rejects
from tests.prep.test_formats import TOOL, A, Q, S, call, said


def converted(row: dict[str, Any], row_format: str = "auto", **options: Any) -> list[Canonical]:
    source = SourceOptions(source="rows.jsonl", format=row_format, **options)
    mapped = column_mapping.rename_columns(row, source.columns)[0]
    found = detect_format.detect([mapped], source.columns) if row_format == "auto" else row_format
    return column_mapping.make_converter(source, found)(row)


def asked(*questions: str) -> list[dict[str, Any]]:
    return [{"messages": [said("user", question), A]} for question in questions]


# ── images ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PICTURE = said("user", "<image>What is this?")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [PICTURE, A], "images": ["a.png"]},
        {"messages": [PICTURE, A], "image": "a.png"},
        {
            "conversations": [{"from": "human", "value": "<video>\nWho?"}, {"from": "gpt", "value": "a"}],
            "videos": ["v"],
        },
        {"instruction": "<audio> What is said?", "output": "a", "audio": "a.wav"},
        {"messages": [said("user", "<|vision_start|><|image_pad|><|vision_end|>q"), A], "images": "a.png"},
        {"question": "q", "answer": "a", "image": {"bytes": "aGk=", "path": "a.png"}},  # nothing says where it belongs
        {"prompt": "<image>q", "chosen": "a", "rejected": "b", "images": [{"bytes": None, "path": "a.png"}]},
        {"prompt": "<image>q", "completion": "a", "label": True, "images": ["a.png"]},
    ],
)
def test_rows_with_images_are_refused_by_the_name_of_their_column(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the row has (image|images|videos|audio): images, sound and video are not"):
        converted(row)


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
def test_parts_that_are_images_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"part of type '{kind}'; images, sound and video are not trained here"):
        converted({"messages": [said("user", [{"type": "text", "text": "q"}, {"type": kind}]), A]})  # type: ignore[arg-type]


def test_text_that_stands_alone_is_trained_and_what_only_names_an_image_is_an_unused_column() -> None:
    row = {"instruction": "q", "output": "a", "image": "https://example.org/a.png", "audio": None, "images": []}
    assert converted(row)[0]["messages"] == [Q, A]
    assert converted({"messages": [said("user", "<image> is a tag of SVG"), A]})[0]["messages"][0]["content"][0] == "<"
    assert column_mapping.unused_columns(SourceOptions(source="x"), row, converted(row)) == ["image", "images"]


# ── text parts, roles, calls ───────────────────────────────────────────────────────────────────────────────────────


def test_parts_may_hold_their_text_in_value() -> None:
    parts = [{"type": "text", "value": "q"}, {"type": "text", "text": "?", "value": None}]
    assert converted({"messages": [said("user", parts), A]}) == asked("q?")  # type: ignore[arg-type]


def test_older_calls_and_newer_roles_become_what_replaced_them() -> None:
    row = {
        "messages": [
            said("developer", "s"),
            Q,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            said("function", "r", name="f"),
            A | {"function_call": None, "tool_calls": None, "weight": None},
        ],
        "functions": [TOOL["function"]],
    }
    turns = [S, Q, said("assistant", "", tool_calls=[call(x=1)]), said("tool", "r", name="f"), A]
    assert converted(row) == [{"messages": turns, "tools": [TOOL]}]
    spelled = {"conversations": [{"from": "developer", "value": "s"}, *row["messages"][1:]], "tools": [TOOL]}
    assert converted(spelled) == [{"messages": turns, "tools": [TOOL]}]


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_tools_on_the_system_turn_are_the_tools_of_the_row(column: str) -> None:
    none = {"tools": None, "reasoning_content": None, "tool_calls": None}
    turns = [
        {"role": "system", "content": "s", **none, "tools": json.dumps([TOOL])},
        {"role": "user", "content": "q", **none},
        {"role": "assistant", "content": "", **none, "tool_calls": json.dumps([call(x=1)])},
        {"role": "tool", "content": "r", **none},
        {"role": "assistant", "content": "a", **none},
    ]
    plain = [S, Q, said("assistant", "", tool_calls=[call(x=1)]), said("tool", "r"), A]
    assert converted({column: turns}) == [{"messages": plain, "tools": [TOOL]}]
    assert converted({column: turns, "tools": [TOOL]}) == [{"messages": plain, "tools": [TOOL]}]
    with pytest.raises(ValueError, match="tools in the column tools and others in a system turn"):
        converted({column: turns, "tools": [{"name": "other"}]})


def test_nulls_that_a_table_has_filled_in_are_left_out() -> None:
    def offered(**properties: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": "f", "description": None, "parameters": parameters}}

    def row(tool: dict[str, Any], arguments: Any) -> dict[str, Any]:
        return {"messages": [Q, said("assistant", "", tool_calls=[call(**arguments)])], "tools": [tool]}

    def given(tool: dict[str, Any], **arguments: Any) -> Any:
        found = converted(row(tool, arguments))[0]
        return found["messages"][1]["tool_calls"][0]["function"]["arguments"], found["tools"][0]["function"]

    number, text = {"type": "integer"}, {"type": "string"}
    assert given(offered(x=number, y=None), x=1, y=None) == (
        {"x": 1},
        {"name": "f", "parameters": {"type": "object", "properties": {"x": number}}},
    )
    assert given(offered(x=number, y=text), x=1, y=None)[0] == {"x": 1}, "text is never null"
    nullable = offered(x=number, y={"type": ["string", "null"], "default": None})
    assert given(nullable, x=1, y=None, z=None) == ({"x": 1, "y": None}, nullable["function"]), "this null is meant"
    as_text = said("assistant", "", tool_calls=[call() | {"function": {"name": "f", "arguments": '{"x": null}'}}])
    assert converted({"messages": [Q, as_text]})[0]["messages"][1]["tool_calls"] == [call(x=None)]


# ── questions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("instruction", ["", None, " \n"])
def test_an_input_without_an_instruction_is_the_question(instruction: str | None) -> None:
    row = {"instruction": instruction, "input": "q"}
    assert converted({**row, "output": "a"}) == asked("q")
    assert converted({**row, "chosen": "a", "rejected": "b"})[0]["prompt"] == [Q]
    assert converted({**row, "output": "a", "kto_tag": True})[0]["prompt"] == [Q]
    with pytest.raises(ValueError, match="instruction is missing"):
        converted({"instruction": None, "input": "", "output": "a"}, "alpaca")


def test_a_system_prompt_may_have_a_longer_name() -> None:
    for row in (
        {"question": "q", "response": "a"},
        {"instruction": "q", "output": "a"},
        {"conversations": [Q, A]},
    ):
        assert converted({"system_prompt": "s", **row}) == [{"messages": [S, Q, A]}]
        both = converted({"system": "s", "system_prompt": "t", **row})
        assert both == [{"messages": [S, Q, A], "columns": {"system_prompt": "t"}}]
    assert converted({"system_prompt": "s", "prompt": "q", "chosen": "a", "rejected": "b"})[0]["prompt"] == [S, Q]


# ── lists as text ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("write", [json.dumps, repr])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A], "tools": [TOOL]},
        {"conversations": [{"from": "human", "value": 'q\'s "d"'}, {"from": "gpt", "value": "a"}], "tools": [TOOL]},
        {"instruction": "q", "input": "", "output": "a", "history": [["q", "a"]]},
        {"prompt": [Q], "completion": [A]},
        {"prompt": [Q], "chosen": [A], "rejected": [said("assistant", "b")]},
        {"chosen": [Q, A], "rejected": [Q, said("assistant", "b")]},
        {"messages": [Q, A], "label": True},
        {"messages": [Q, said("assistant", "", tool_calls=[call(x=1)])], "tools": [TOOL]},
    ],
)
def test_cells_that_hold_lists_as_text_are_the_lists(row: dict[str, Any], write: Any) -> None:
    cell = {name: write(value) if isinstance(value, list) else value for name, value in row.items()}
    assert converted(cell) == converted(row)


def test_replies_that_are_json_stay_text() -> None:
    reply = json.dumps([{"role": "user", "content": "made up"}, {"role": "assistant", "content": "so"}])
    assert converted({"prompt": "Make up a chat.", "completion": reply})[0]["messages"][1]["content"] == reply
    found = converted({"prompt": "Make up a chat.", "chosen": reply, "rejected": "no"})
    assert found[0]["chosen"][0]["content"] == reply


def test_a_column_of_messages_that_are_none_says_what_it_holds() -> None:
    with pytest.raises(ValueError, match=r"the column messages holds 'Hello!', not a list of turns"):
        detect_format.detect([{"messages": "Hello!"}])


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "[1", "{'a'", "[1, 2] and", "\ud800[", "['\\ud800']"])
def test_text_that_only_begins_like_a_list_is_text(text: str) -> None:
    found = cells.parse_cell(text)
    assert found == text or isinstance(found, list)


# ── judgements ─────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = [True, 1, 1.0, "true", "True", "TRUE", "1", "good", "Desirable", " yes ", "chosen"]
BAD = [False, 0, 0.0, "false", "False", "0", "bad", "undesirable", "no", "rejected"]


@pytest.mark.parametrize("label", [*GOOD, *BAD])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
        {"prompt": "q", "response": "a"},
        {"messages": [Q, A]},
        {"conversations": [Q, A]},
        {"messages": json.dumps([Q, A])},
    ],
)
def test_labels_in_every_spelling_are_judgements_and_no_bad_reply_is_trained(row: dict[str, Any], label: Any) -> None:
    judged = {"prompt": [Q], "completion": [A], "label": any(label is each for each in GOOD)}
    for name in ("label", "kto_tag"):
        assert converted({**row, name: label}) == [judged]
        assert converted({**row, name: label}, "kto") == [judged]


@pytest.mark.parametrize("label", [False, "false", "bad", "undesirable", "rejected"])
def test_where_most_rows_have_no_judgement_a_bad_one_is_refused(label: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}]
    rows += [{"prompt": "q", "completion": "wrong", "label": label}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rejects = Rejects(lambda _: None)
    found = list(read_rows.read([SourceOptions(source="rows.jsonl")], tmp_path, rejects, 1, lambda _: None))
    assert len(found) == 2 and "may judge the reply as bad: set format" in rejects.first[0]
    named = SourceOptions(source="rows.jsonl", format="prompt_completion")
    assert len(list(read_rows.read([named], tmp_path, rejects, 1, lambda _: None))) == 3, "asked for by name"


def test_classes_are_no_judgements() -> None:
    rows = [{"prompt": "q", "completion": "a", "label": number % 5} for number in range(20)]
    assert detect_format.detect(rows) == "prompt_completion"
    assert converted(rows[0], "prompt_completion", columns={})[0]["columns"] == {"label": 0}


def test_a_csv_of_judgements_is_judged(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion", "label"], ["q", "a", "True"], ["q", "b", "False"]])
    rejects = Rejects(lambda _: None)
    found = list(read_rows.read([SourceOptions(source="rows.csv")], tmp_path, rejects, 1, lambda _: None))
    assert [row.content["label"] for row in found] == [True, False] and not rejects.count


# ── mappings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"instruction": "ask", "output": "say"}, {"ask": "q", "say": "a", "prompt": "x", "completion": "y"}, [Q, A]),
        ({"prompt": "ask"}, {"ask": "q", "completion": "a", "question": "x"}, [Q, A]),
        ({"answer": "say"}, {"question": "q", "say": "a", "completion": "x", "response": "y"}, [Q, A]),
        ({"messages": "chat"}, {"chat": [Q, A], "conversations": [S, Q], "text": "x"}, [Q, A]),
        ({"question": "question"}, {"question": "q", "prompt": "id-1", "response": "a"}, [Q, A]),
        ({"text": "body"}, {"body": "t", "messages": [Q, A]}, "t"),
    ],
)
def test_a_mapping_wins_over_what_could_be_detected(columns: Any, row: dict[str, Any], expected: Any) -> None:
    found = converted(row, columns=columns)[0]
    assert found.get("messages", found.get("text")) == expected
    used = {*columns.values(), "completion" if "prompt" in columns else "", "question", "response"}
    left = set(row) - used
    assert left <= set(found["columns"]), "what is not used is kept and can be named"


def test_a_catalogue_wins_over_what_could_be_detected(tmp_path: Path) -> None:
    entries = {
        "mix": {
            "file_name": "mix.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "completion", "kto_tag": "label"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        "pairs": {
            "file_name": "pairs.jsonl",
            "ranking": True,
            "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        },
    }
    rows = {
        "mix": {"prompt": "p-17", "completion": [Q, A], "label": True},
        "pairs": {"prompt": "id-1", "instruction": "q", "chosen": "a", "rejected": "b"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        source = dataset_info.read(tmp_path / "dataset_info.json")[name]
        (found,) = column_mapping.make_converter(source, read_rows.find_format(source, tmp_path / f"{name}.jsonl"))(row)
        assert found["prompt"] == [Q] and found["columns"] == {"prompt": row["prompt"]}
