"""What a profile's fields say about a value that they cannot have, and sources written as paths alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from engine.config.form import build_schema
from engine.config.overrides import load_reference
from engine.config.profile import SECTIONS, ProfileError, parse
from engine.options.base import Options

VALUES = ("null", "true", "-7", "3.25", "x y z", "''", "[]", "[1]", "[[1]]", "[null]", "{}", "{a: 1}", "[{nosuch: 1}]")
PYTHON = re.compile(
    r"\b(str|int|float|bool|dict|list\[|None|True|False|instance|dictionary|object at|Commented\w*|\w+Options)\b"
)
"""Names of types and values that nobody writes into a profile."""


def find_models(annotation: Any) -> Iterator[type[Options]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for argument in get_args(annotation):
        yield from find_models(argument)


def walk(model: type[Options], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each mapping of settings below `keys`, and the names of its settings."""
    yield keys, list(model.model_fields)
    for key, info in model.model_fields.items():
        listed = ("0",) if "list" in str(info.annotation) else ()
        for inner in find_models(info.annotation):
            yield from walk(inner, (*keys, key, *listed))


def every_mapping() -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """Each mapping of settings of each section: the section's kind, the keys that lead to it, and its settings."""
    for name, owner in SECTIONS.items():
        kinds = owner if isinstance(owner, dict) else {"": owner}
        for kind, model in kinds.items():
            model = load_reference(model) if isinstance(model, str) else model
            for keys, names in walk(model, (name,)):
                yield kind, keys, names


def write(keys: tuple[str, ...], names: list[str], kind: str, value: str) -> str:
    """A profile that gives all settings of one mapping the same value."""
    own = [f"kind: {kind}"] if kind else []
    text = ", ".join([*(own if len(keys) == 1 else []), *(f"{name}: {value}" for name in names if name != "kind")])
    text = f"{{{text}}}"
    for at, key in reversed(list(enumerate(keys))):
        others = f"{own[0]}, " if at == 1 and own else ""
        text = f"[{text}]" if key.isdigit() else f"{{{others}{key}: {text}}}"
    return text


def test_no_error_of_any_field_names_a_type_of_python(tmp_path: Path) -> None:
    said: set[str] = set()
    for at, (kind, keys, names) in enumerate(every_mapping()):
        for value in VALUES[at % 3 :: 3]:
            with pytest.raises(ProfileError) as caught:
                parse(write(keys, names, kind, value), "p.yaml", tmp_path)
            for issue in caught.value.issues:
                said.add(f"{kind} {issue.key}")
                assert not PYTHON.search(issue.message), (keys, value, issue.message)
    assert len(said) > 300


@pytest.mark.parametrize(
    "written",
    ["my.jsonl", "[my.jsonl]", "{source: my.jsonl}", "[{source: my.jsonl}]"],
)
def test_a_source_may_be_a_path_alone(tmp_path: Path, written: str) -> None:
    (tmp_path / "my.jsonl").write_text('{"text": "a"}\n')
    for part in ("train", "validation", "test"):
        others = "" if part == "train" else "train: my.jsonl, "
        profile = parse(f"data: {{{others}{part}: {written}}}", "p.yaml", tmp_path)
        assert [source.source for source in getattr(profile.data, part)] == ["my.jsonl"]
    assert parse("data: {}", "p.yaml", tmp_path, ["data.train=my.jsonl"]).data.train[0].source == "my.jsonl"
    again = parse(profile.to_yaml(), "p.yaml", tmp_path)
    assert again.data == profile.data


def test_paths_and_sources_may_be_mixed_and_their_errors_have_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ProfileError) as caught:
        parse("data:\n  train:\n    - a.jsonl\n    - {source: a.jsonl}\n    - b.jsonl\n", "p.yaml", tmp_path)
    assert [(issue.key, issue.line) for issue in caught.value.issues] == [("data.train.2.source", 5)]
    for wrong in ("3", "null", "true"):
        with pytest.raises(ProfileError, match="must be a path, or a list of paths and sources"):
            parse(f"data: {{train: {wrong}}}", "p.yaml", tmp_path)


def test_the_schema_allows_a_path() -> None:
    train = build_schema()["properties"]["data"]["properties"]["train"]
    assert {"type": "string"} in train["anyOf"]
    assert {"type": "string"} in train["anyOf"][-1]["items"]["anyOf"]


@pytest.mark.parametrize("value", ["{2024-01-01: 5}", "{? [1, 2] : 3}", "[{? {a: 1} : 3}]", "{? 1.5 : 2}"])
def test_a_mapping_with_keys_that_are_no_text_is_refused_in_words(value: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"data\.max_length: must be a valid integer, not "):
        parse(f"data: {{train: x, max_length: {value}}}", "p.yaml", tmp_path, elsewhere=True)
