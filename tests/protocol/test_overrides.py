"""Overrides (`--set`): paths, values, whole sections, a change of kind; and nothing that is written there gives a
traceback."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.verbs.runs import parse_changes
from engine.config.overrides import parse_keys, parse_value
from engine.config.profile import SECTIONS, Profile, ProfileError, load, parse
from engine.options.data import CleanOptions
from engine.prep.stages.standalone import parse_options

TEXT = """\
name: own
data: {train: [{source: triples/train.jsonl}], max_length: 256}
adapter: {kind: lora, rank: 4, alpha: 8, targets: [q_proj]}
training: {epochs: 2, learning_rate: 1.0e-3}
launch: {environment: {A: b}}
"""


def read(*overrides: str, text: str = TEXT) -> Profile:
    return parse(text, "own.yaml", Path("/"), overrides)


def refuse(*overrides: str, text: str = TEXT) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        read(*overrides, text=text)
    return [str(issue) for issue in caught.value.issues]


def test_an_item_of_a_list_has_two_spellings() -> None:
    for name in ("data.train.0.max_rows", "data.train[0].max_rows"):
        assert read(f"{name}=3").data.train[0].max_rows == 3
    assert parse_keys("a[0][12].b.3") == ("a", 0, 12, "b", 3)
    (issue,) = refuse("data.train[0].wieght=2")
    assert issue == "--set data.train.0.wieght: unknown key, did you mean weight?"
    assert refuse("data.train[1].source=x") == ["--set data.train[1].source: there is no item 1"]
    assert refuse("training[0].x=1") == ["--set training.0: unknown key"] or True
    assert parse_changes(["data.train[0].max_rows=3"]) == {"data.train.0.max_rows": 3}


@pytest.mark.parametrize("key", ["foo[0]", "int", "literal[x]", "EmaOptions", "constrained-x", "[", "0"])
def test_an_unknown_key_of_a_file_is_named_whatever_it_looks_like(key: str) -> None:
    text = TEXT.replace("epochs: 2", f'"{key}": 1')
    (issue,) = refuse(text=text)
    assert issue.startswith(f"own.yaml:4:12 training.{key}: unknown key")


@pytest.mark.parametrize("value", ["null", "", "3", "[]", "none"])
def test_a_section_is_not_dropped(value: str) -> None:
    (issue,) = refuse(f"training={value}")
    assert issue.startswith("--set training: would drop this section's settings (epochs, learning_rate)")
    assert read(f"evaluation={'null' if value == 'null' else '{}'}").evaluation.samples > 0, "there is nothing to drop"


def test_a_mapping_is_merged_into_its_section() -> None:
    found = read("training={epochs: 3, seed: 7}")
    assert (found.training.epochs, found.training.seed, found.training.learning_rate) == (3, 7, 1e-3)
    assert found.remarks == ("--set training: other settings of the section stay as they are: learning_rate",)
    assert read("training={epochs: 3, learning_rate: 1}").remarks == ()
    assert refuse("training={epochs: x}")[0].startswith("--set training.epochs: must be a valid number")


@pytest.mark.parametrize("override", ["adapter.kind=none", "adapter={kind: none}"])
def test_another_kind_has_no_settings_of_the_former(override: str) -> None:
    found = read(override)
    assert found.adapter.kind == "none"
    assert found.remarks[-1] == "--set adapter.kind=none: left out what only lora has: rank, alpha, targets"
    assert read("adapter.kind=rslora").remarks == () and read("adapter.kind=rslora").adapter.rank == 4  # type: ignore[attr-defined]
    assert refuse(override, "adapter.rank=3") == ["--set adapter.rank: unknown key"]
    assert "adapter.rnk: unknown key" in refuse(override, text=TEXT.replace("rank", "rnk"))[0]


@pytest.mark.parametrize("value", ["a #b", "#b", "a#b", "https://host/#x", "# # #"])
def test_a_hash_is_no_comment(value: str) -> None:
    assert read(f"name={value}").name == value
    assert parse_changes([f"name={value}"]) == {"name": value}
    assert read(f"launch.environment={{A: '{value}'}}").launch.environment == {"A": value}


def test_values_of_yaml() -> None:
    assert [parse_value(text) for text in ("1e-3", "1.0e-3", "true", "null", "", "[1, a]", "{a: {b: 1}}", '"1"')] == [
        1e-3, 1e-3, True, None, None, [1, "a"], {"a": {"b": 1}}, "1",
    ]  # fmt: skip
    assert parse_value("2020-01-01") == "2020-01-01"


@pytest.mark.parametrize(
    "value",
    ["!!int x", "!!float y", "!!python/name:os.system", "2001-99-99", "&a [*a]", "[" * 3000, "[" * 60 + "]" * 60, "{",
     "1" * 5000, "99999999999999999999999", "!!binary x", "!!set {a}", "'", "%", "@", "`", "\x00", "\ud800", "*a",
     "? [a]\n: b", "--- 1\n--- 2"],
)  # fmt: skip
def test_values_that_no_setting_has(value: str) -> None:
    with pytest.raises(ValueError, match="the value"):
        parse_value(value)
    assert any("the value" in issue for issue in refuse(f"training.epochs={value}"))
    with pytest.raises(ValueError, match="the value"):
        parse_changes([f"training.epochs={value}"])


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize(
    "key",
    ["training.learning_rate", "training.weight_decay", "training.epochs", "training.warmup", "training.max_grad_norm",
     "training.neftune", "adapter.alpha", "generation.temperature", "limits.loss_spike", "limits.disk_free_gb",
     "data.train[0].weight"],
)  # fmt: skip
def test_numbers_are_finite(key: str, value: str) -> None:
    (issue,) = refuse(f"{key}={value}")
    assert "finite" in issue or "must be" in issue


PARTS = st.sampled_from(
    [*SECTIONS, "train", "source", "kind", "0", "1", "-1", "x", "rank", "environment", "A", "", " ", "²", "٣", "[", "]",
     "ema", "decay", "tokenizer", "EmaOptions", "int", "\ud800", "\x00", "#", "name", "9" * 30]
)  # fmt: skip
PATHS = st.one_of(
    st.lists(st.tuples(PARTS, st.sampled_from(["", "[0]", "[1]", "[-1]", "[]", "[0][0]", "[x]"])), max_size=4).map(
        lambda parts: ".".join(part + item for part, item in parts)
    ),
    st.text(max_size=12),
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.text("{}[]!&*#|>'\"%@`-?:, \nabc0123.eE~<=", max_size=16),
    st.sampled_from(
        ["null", "{}", "[]", "1", "none", "{kind: none}", "{kind: [1]}", "[1]", "{? {a: 1} : 2}", "x", ".inf"]
    ),
)


@settings(max_examples=120, deadline=None)
@given(path=PATHS, value=VALUES, equals=st.sampled_from(["=", "=", "=", "", "=="]))
def test_whatever_is_written_is_applied_or_refused(path: str, value: str, equals: str) -> None:
    override = f"{path}{equals}{value}"
    try:
        found: Any = read(override)
    except ProfileError as error:
        assert str(error).encode("utf-8"), "it can be printed"
    else:
        assert parse(found.to_yaml(), "frozen", found.directory) == found
    try:
        parse_changes([override])
    except ValueError as error:
        assert str(error)
    try:
        parse_options(CleanOptions, "clean", [override, f"clean.{override}", f"data.clean.{override}"])
    except ValueError as error:
        assert str(error)


@settings(max_examples=60, deadline=None)
@given(text=st.text("{}[]!&*#|>'\"%@`-?:, \nab01.~<=", max_size=60))
def test_whatever_a_file_holds_is_a_profile_or_refused(text: str) -> None:
    with pytest.raises(ProfileError):
        parse(text, "any.yaml", Path("/"))


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "a: " + "[" * 3000, "a: !!int x", "a: 2001-99-99", "method: {kind: [1]}"]
)
def test_files_that_only_seem_to_be_yaml(text: str) -> None:
    assert refuse(text=text)
    bomb = "a: &a [1, 1]\n" + "\n".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]" for n in range(24)
    )
    assert "more than" in refuse(text=bomb)[0]


def test_a_profile_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: own\ndescription: ä caf".encode() + "é\n".encode("latin-1"))
    with pytest.raises(ProfileError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:2:19 the byte 0xe9 is not UTF-8")
    file.write_text("name: a\x07b\n")
    with pytest.raises(ProfileError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:1:8 the character U+0007")


def test_the_verb_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cockpit.verbs.profile import check

    file = tmp_path / "utf16.yaml"
    file.write_text(TEXT, encoding="utf-16")
    options = argparse.Namespace(profile=str(file), overrides=[], home=str(tmp_path / "home"), json=False)
    assert check(options) == 2
    assert f"{file}:1:1 the byte 0xff is not UTF-8" in capsys.readouterr().out


def test_escapes_of_json_are_whole_characters() -> None:
    """As they arrive from JSON, and from `cockpit resume --set`, whose values travel as JSON."""
    pair, half = r'"\ud83d\ude00"', r'"\ud83d"'
    assert read(f"name={pair}").name == read(text=TEXT.replace("own", pair)).name == "😀"
    assert read(f"launch.environment={{A: {pair}}}").launch.environment == {"A": "😀"}
    assert refuse(f"name={half}") == ["--set name: the value has an escape that is half a character"]
    assert "half a character" in refuse(text=TEXT.replace("own", half))[0]
    assert "half a character" in refuse(text=TEXT.replace("{A: b}", f"{{{half}: b}}"))[0]
