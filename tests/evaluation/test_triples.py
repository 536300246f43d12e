"""The triples task: parsing, scores worked out by hand, and the committed sample set."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from engine.config.bundled import find_bundled
from engine.tasks import triples

SETS = find_bundled("data") / "triples"


def reply(*facts: tuple[str, str, str]) -> str:
    return json.dumps(
        [{"subject": s, "subject_type": "t", "predicate": p, "object": o, "object_type": "t"} for s, p, o in facts]
    )


def test_scores_are_micro_averages_over_sets() -> None:
    replies = [
        reply(("A", "p", "B"), ("A", "p", "B"), ("A", "q", "C")),  # a duplicate counts once: 2 given, 1 right
        reply(("X", "p", "Y"), ("X", "q", "Z")),  # 2 given, 2 right
        "no JSON at all",  # 0 given
        '[{"subject": "K"}]',  # JSON, not the schema: 0 given
    ]
    references = [
        reply(("A", "p", "B"), ("A", "r", "D")),  # 2 wanted
        reply(("X", "p", "Y"), ("X", "q", "Z"), ("X", "r", "W")),  # 3 wanted
        reply(("M", "p", "N")),  # 1 wanted
        reply(("K", "p", "L")),  # 1 wanted
    ]
    scores = triples.TASK.score(replies, references)
    assert scores == {
        "json_validity": 3 / 4,
        "schema_validity": 2 / 4,
        "triples_precision": 3 / 4,
        "triples_recall": 3 / 7,
        "triples_f1": pytest.approx(2 * (3 / 4) * (3 / 7) / (3 / 4 + 3 / 7)),
    }


def test_comparison_trims_and_normalises_but_keeps_case_and_ignores_types() -> None:
    reference = reply(("Ｋyoto", "p", "ﬁlm"), ("a", "p", "b"))
    given = reply((" Kyoto ", "p", "film"), ("A", "p", "b")).replace('"t"', '"other"')
    scores = triples.TASK.score([given], [reference])
    assert (scores["triples_precision"], scores["triples_recall"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    "text",
    ["[]", " \n[]\n", "```json\n[]\n```", "\n```json\n [] \n```\n", "```json []```"],
)
def test_one_json_fence_and_blanks_are_removed(text: str) -> None:
    assert triples.parse(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "```json\n```json\n[]\n```\n```",  # one fence only
        "Here you are: []",
        "[NaN]",
        "[" * 100_000,
        '{"subject":"a","subject_type":"b","predicate":"c","object":"d","object_type":"e"}',  # not a list
        '[{"subject":"a","subject_type":"b","predicate":"c","object":"d"}]',
        '[{"subject":"a","subject_type":"b","predicate":"c","object":"d","object_type":"e","more":"f"}]',
        '[{"subject":"a","subject_type":"b","predicate":"c","object":4,"object_type":"e"}]',
    ],
)
def test_anything_else_is_no_list_of_triples(text: str) -> None:
    assert triples.parse(text) is None


def test_nothing_given_scores_zero_and_a_bad_reference_is_an_error() -> None:
    assert set(triples.TASK.score(["?"], [reply(("a", "b", "c"))]).values()) == {0.0}
    with pytest.raises(ValueError, match="reference 0"):
        triples.TASK.score(["[]"], ["oops"])
    with pytest.raises(ValueError, match="1 replies for 0 references"):
        triples.TASK.score(["[]"], [])


def test_committed_files_equal_a_fresh_generation() -> None:
    fresh = runpy.run_path(str(find_bundled("data") / "make_triples.py"))["make"]()
    assert {name: (SETS / f"{name}.jsonl").read_bytes() for name in fresh} == {
        name: content.encode() for name, content in fresh.items()
    }


def test_the_catalog_lists_every_bundled_file_with_its_rows() -> None:
    catalog = YAML(typ="safe").load(find_bundled("data") / "catalog.yaml")
    listed = {file: entry["rows"] for each in catalog.values() for file, entry in each["files"].items()}
    found = {
        str(path.relative_to(find_bundled("data"))): len(path.read_text(encoding="utf-8").splitlines())
        for path in find_bundled("data").rglob("*.jsonl")
    }
    assert listed == found and found


def rows(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_sets_are_disjoint_well_formed_and_true_to_the_sentence() -> None:
    sets = {name: rows(SETS / f"{name}.jsonl") for name in ("train", "dev", "test")}
    assert {name: len(each) for name, each in sets.items()} == {"train": 400, "dev": 64, "test": 64}
    sentences = [messages[1]["content"] for each in sets.values() for messages in each]
    assert len(set(sentences)) == len(sentences) == 528
    people: dict[str, set[str]] = {}
    for name, each in sets.items():
        for messages in each:
            text = messages[1]["content"].removeprefix("Extract the triples: ")
            facts = triples.parse(messages[2]["content"])
            assert messages[:2] == triples.messages(text)
            assert facts and 1 <= len(facts) <= 3
            for fact in facts:
                assert tuple(fact) == triples.KEYS
                assert fact["subject"] in text and fact["object"] in text
                people.setdefault(name, set()).update(
                    fact[role] for role in ("subject", "object") if fact[f"{role}_type"] == "person"
                )
    assert people["train"] and not people["train"] & (people["dev"] | people["test"])
