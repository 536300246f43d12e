"""What `cockpit explain` says: there is a text for each code, and the settings and commands that it names exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex

import pytest

from cockpit.cli import build_parser, main
from engine.config.form import list_fields
from engine.config.overrides import load_reference
from engine.config.profile import SECTIONS
from engine.protocol.codes import CODES
from engine.protocol.explanations import find_similar, read_explanations

KINDS = {"RUN": "last", "PROFILE": "p.yaml", "FILE": "f", "FOLDER": "f", "NAME": "n", "CODE": "run.none"}
KINDS |= {"VERB": "runs", "HOST": "h", "KEY=VALUE": "a.b=1", "RUN@STEP": "last@1", "SOURCE": "rows"}


def list_settings() -> set[str]:
    """Every setting of every section, those of all methods and adapters, and the sections themselves."""
    found = set(SECTIONS)
    for method in SECTIONS["method"]:
        found |= {field.key for field in list_fields(method=method)}
    for adapter in SECTIONS["adapter"]:
        found |= {field.key for field in list_fields(adapter=adapter)}
    data = load_reference(SECTIONS["data"]) if isinstance(SECTIONS["data"], str) else SECTIONS["data"]
    for name, info in data.model_fields.items():
        for inner in getattr(info.annotation, "__args__", ()):
            found |= {f"data.{name}.{key}" for key in getattr(inner, "model_fields", ())}
    return found | {"logging.wandb.mode"}


def test_every_code_has_an_explanation_in_the_order_of_the_table() -> None:
    found = read_explanations()
    assert list(found) == list(CODES)
    for explanation in found.values():
        assert all(re.fullmatch(r"\S.{8,600}\.", text) for text in explanation[1:]), explanation
        assert explanation.how not in explanation.meaning


def test_the_settings_that_are_named_exist() -> None:
    settings = list_settings()
    text = " ".join(" ".join(each[2:]) for each in read_explanations().values())
    named = set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_.]+)(?:: [^`]*)?`", text))
    assert len(named) > 40
    assert sorted(named - settings - set(CODES) - {"tokenizer.json"}) == []


def test_the_commands_that_are_named_parse() -> None:
    text = " ".join(" ".join(each[2:]) for each in read_explanations().values())
    lines = set(re.findall(r"`cockpit ([^`]+)`", text))
    assert len(lines) > 30
    wrong = []
    for line in sorted(line for line in lines if "--help" not in line):
        words = [KINDS.get(word, "1" if word == "N" else word) for word in shlex.split(line.replace("=N", "=1"))]
        try:
            options = build_parser().parse_known_args(words)[0]
            assert options.function
        except (ValueError, AssertionError) as error:
            if not re.search(r"the following arguments are required", str(error)):  # `cockpit resume`, in passing
                wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("memory.exhaust", "memory.exhausted"),
        ("memory-exhausted", "memory.exhausted"),
        ("exhausted", "memory.exhausted"),
        ("memroy.exhausted", "memory.exhausted"),
        ("run_not_found", "run.not_found"),
        ("template.changd", "template.changed"),
    ],
)
def test_a_mistyped_code_is_answered_with_the_one_that_was_meant(typed: str, meant: str) -> None:
    assert meant in find_similar(typed)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["explain", typed, "--json"]) == 2
    error = json.loads(said.getvalue())["error"]
    assert error["code"] == "request.invalid" and meant in error["cause"]
    assert find_similar("zzzz") == []


def test_the_verb_prints_one_and_lists_all() -> None:
    for arguments, size in ((["explain", "memory.exhausted", "--json"], 4), (["explain", "--json"], len(CODES))):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert main(arguments) == 0
        assert len(json.loads(said.getvalue())) == size
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["explain", "memory.exhausted"]) == 0
    explanation = read_explanations()["memory.exhausted"]
    plain = " ".join(said.getvalue().split())
    assert all(text in plain for text in explanation)
