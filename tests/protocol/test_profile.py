"""Profiles: every problem at once, each at its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import profile
from engine.config.bundled import find_bundled
from engine.config.form import build_schema, list_fields
from engine.config.profile import ProfileError, find, load, parse
from engine.options.tables import AUTO, METHODS, STRATEGIES
from engine.protocol.home import Home

BAD = """\
name: bad
model:
  base: a
  dtype: bflot16
data:
  train:
    - source: triples/trian.jsonl
      wieght: 2
training:
  learning_rat: 1e-4
  micro_batch: four
  epochs: 0
launch: {processes: many, devices: [0, x]}
trainig: {}
method: {kind: sftt}
evaluation: {task: triplez}
"""


def issues(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        parse(text, "bad.yaml", Path("/"), overrides)
    return [str(issue) for issue in caught.value.issues]


def test_all_problems_are_reported_at_once_each_with_line_and_column() -> None:
    assert issues(BAD) == [
        "bad.yaml:4:3 model.dtype: must be bfloat16, float16 or float32, not 'bflot16', did you mean bfloat16?",
        "bad.yaml:8:7 data.train.0.wieght: unknown key, did you mean weight?",
        "bad.yaml:10:3 training.learning_rat: unknown key, did you mean learning_rate?",
        "bad.yaml:11:3 training.micro_batch: must be a valid integer or auto, not 'four'",
        "bad.yaml:12:3 training.epochs: must be greater than 0, not 0",
        "bad.yaml:13:10 launch.processes: must be a valid integer or all, not 'many'",
        "bad.yaml:13:40 launch.devices.1: must be a valid integer, not 'x'",
        "bad.yaml:14:1 trainig: unknown section, did you mean training?",
        f"bad.yaml:15:10 method.kind: must be one of {', '.join(METHODS)}, not 'sftt', did you mean sft?",
        "bad.yaml:16:14 evaluation.task: must be one of triples, thought_graph, not 'triplez'",
    ]


def test_overrides_are_yaml_and_their_problems_name_the_option() -> None:
    path = find("triples-qlora")
    read = load(
        path, ["training.learning_rate=1e-3", "data.train.0.max_rows=3", "launch.devices=[]", "data.packing=false"]
    )
    assert (read.training.learning_rate, read.data.train[0].max_rows) == (1e-3, 3)
    with pytest.raises(ProfileError) as caught:
        load(path, ["training.foo=3", "nonsense", "data.train.7.source=x"])
    assert [str(issue) for issue in caught.value.issues] == [
        "--set nonsense: write it as section.key=value",
        "--set data.train.7.source: there is no item 7",
        "--set training.foo: unknown key",
    ]


def test_checks_across_sections() -> None:
    found = issues(
        "data: {train: [{source: triples/train.jsonl}]}\n"
        "model: {quantization: nf4}\n"
        "evaluation: {task: triples}\n"
        "launch: {processes: 2, devices: [0], environment: {WANDB_API_KEY: abc}}\n"
    )
    assert any("2:9 model.quantization: a nf4 base cannot be trained in full" in line for line in found)
    assert any("evaluation.task: needs data.validation" in line for line in found)
    assert any("launch.devices: names 1 devices for 2 processes" in line for line in found)
    assert any("launch.environment.WANDB_API_KEY: looks like a secret" in line for line in found)


def test_a_missing_source_names_the_near_miss() -> None:
    (line,) = issues("data: {train: [{source: triples/trian.jsonl}]}")
    assert line.startswith("bad.yaml:1:17 data.train.0.source: there is no triples/trian.jsonl")
    assert line.endswith("did you mean triples/train.jsonl?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "bad.yaml:1:6 while parsing a flow sequence"),
        ("a: 1\na: 2\n", "bad.yaml:2:1 while constructing a mapping found duplicate key"),
        ("- 1\n", "a profile is a mapping"),
        ("", "data.train: is required"),
        ("data: 3\n", "data: must be a mapping"),
        ("name: 3\ndata: {train: [{source: triples/train.jsonl}]}", "name: must be text"),
    ],
)
def test_files_that_are_no_profiles(text: str, message: str) -> None:
    assert any(message in line for line in issues(text))


@given(st.text(max_size=200))
def test_any_text_is_a_profile_or_a_profile_error(text: str) -> None:
    with pytest.raises(ProfileError):
        parse(text, "any.yaml", Path("/"))


def test_every_built_in_profile_is_valid_and_equal_to_its_frozen_form(tmp_path: Path) -> None:
    files = sorted(find_bundled("profiles").glob("*.yaml"))
    assert files
    home = Home(tmp_path / "home").create()
    for file in files:
        try:
            read = load(file, home=home)
        except ProfileError as error:
            # A model or run that one has to bring is all that may be missing.
            assert [issue.key for issue in error.issues] == ["model.base"]
            assert error.issues[0].message.startswith(("There is no model", "There is no run"))
            read = load(file, ("model.base=org/name",), home=home)
        assert parse(read.to_yaml(), "frozen", read.directory, home=home) == read


def test_json_is_a_profile_too(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"data": {"train": [{"source": "triples/train.jsonl"}]}}))
    assert load(file).training.epochs == 1.0


def test_form_and_schema_come_from_the_declaration() -> None:
    fields = {field.key: field for field in list_fields(adapter="lora")}
    assert fields["model.quantization"].choices == ("none", "nf4", "int8")
    assert fields["training.warmup"].help and fields["data.max_length"].unit == "tokens"
    assert fields["adapter.rank"].default == 16
    assert all(field.help for field in fields.values())
    described = build_schema()
    assert set(described["properties"]) == {"name", "description", *profile.SECTIONS}
    assert described["properties"]["training"]["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    assert described["properties"]["model"]["additionalProperties"] is False


def test_the_help_names_every_strategy_of_the_table() -> None:
    (field,) = [field for field in list_fields() if field.key == "launch.strategy"]
    assert field.choices == (*STRATEGIES, AUTO) and AUTO in field.help
    assert all(f"{name}, {strategy.help}" in field.help for name, strategy in STRATEGIES.items())


def test_an_unknown_name_is_refused_with_the_near_miss() -> None:
    with pytest.raises(ProfileError, match="did you mean triples-qlora"):
        find("triples-qlor")


@pytest.mark.parametrize("text", ["[" * 3000, "[" * 100_000, "{" * 3000, "- " * 3000, "data: {train: " + "[" * 500])
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    with pytest.raises(ProfileError, match=r"nested|brackets are open|inside each other|YAML|mapping") as raised:
        parse(text, "deep.yaml", Path("/"))
    assert raised.value.issues[0].code == "profile.syntax"
