"""Editing one setting of a profile's text."""

from __future__ import annotations

import difflib

import pytest

from cockpit.profiles.check import check_profile
from cockpit.profiles.files import ProfileFile
from cockpit.profiles.yaml_edit import add_item, clear_value, read_yaml, set_value, to_flow_yaml, value_at
from engine.config.profile import find
from tests.app.screen import NOWHERE

DEMO = find("triples-qlora")
BLOCK = (
    "data:\n  train:\n    - source: a.jsonl\n      weight: 2.0   # hi\n\n  # kept\n"
    "model: {base: x, dtype: float32} # c\nmethod:\n"
)


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_only_the_setting_changes_and_comments_stay_in_their_column() -> None:
    text = DEMO.read_text()
    assert changed_lines(text, set_value(text, "method.loss_on", "all")) == [
        "-   loss_on: assistant            # only the replies are trained",
        "+   loss_on: all                  # only the replies are trained",
    ]
    assert changed_lines(text, set_value(text, "training.accumulation", "4")) == ["+   accumulation: 4"]
    assert changed_lines(text, set_value(text, "limits.disk_free_gb", "4")) == [
        "+ ",
        "+ limits:",
        "+   disk_free_gb: 4",
    ]
    assert changed_lines(text, clear_value(text, "generation.temperature")) == ["-   temperature: 0.0"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.train", "[{source: z}]"), ("model.attention", "eager"), ("method.loss_on", "all"), ("name", "n")],
)
def test_blocks_flows_and_empty_sections_take_a_value_and_give_it_back(key: str, value: str) -> None:
    after = set_value(BLOCK, key, value)
    assert to_flow_yaml(value_at(read_yaml(after), key)) == value
    assert "# kept" in after and "# c" in after
    with pytest.raises(KeyError):
        value_at(read_yaml(clear_value(after, key)), key)


@pytest.mark.parametrize("value", ["a: b: c", "[1", "x #y"])
def test_what_is_not_one_yaml_value_is_refused_or_means_what_it_says(value: str) -> None:
    if value == "x #y":
        assert read_yaml(set_value(BLOCK, "name", value))["name"] == "x"
        return
    with pytest.raises(ValueError, match="not a YAML value"):
        set_value(BLOCK, "name", value)


def test_an_inspection_follows_the_kinds_and_tells_every_problem() -> None:
    text = DEMO.read_text().replace("kind: lora", "kind: none").replace("learning_rate:", "learning_rat:")
    inspection = check_profile(text, ProfileFile(DEMO, "built-in"), NOWHERE)
    keys = [field.key for field in inspection.fields]
    assert "adapter.kind" in keys and "adapter.rank" not in keys
    assert {"adapter.rank", "training.learning_rat"} <= {issue.key for issue in inspection.issues}


@pytest.mark.parametrize(
    ("probes", "added"),
    [
        ("  probes:  # mine\n    - one  # first\n    - |-\n      two\n      lines\n  # end\n", ['+     - "Who: #1?"']),
        ("  probes:\n  - one\n", ['+   - "Who: #1?"']),
        ("  probes: [one, 'two']  # mine\n", None),
        ("  probes: []\n", None),
        ("  every_steps: 5  # often\n", ['+   probes: ["Who: #1?"]']),
    ],
)
def test_an_item_is_added_and_comments_stay(probes: str, added: list[str] | None) -> None:
    text = f"name: x\nevaluation:\n{probes}data: {{train: x}}  # end\n"
    after = add_item(text, "evaluation.probes", "Who: #1?")
    before = read_yaml(text)["evaluation"].get("probes") or []
    assert read_yaml(after)["evaluation"]["probes"] == [*before, "Who: #1?"]
    assert after.count("  # ") == text.count("  # "), "no comment is lost"
    if added is not None:
        assert changed_lines(text, after) == added
