"""The expanded rows on the Data screen: shown with what they came from, accepted and dropped, found by decision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import profile
from engine.options.data import ExpandOptions, SourceOptions
from engine.prep import read_rows
from engine.prep.browse import Browser
from engine.prep.expand import decisions
from engine.prep.expand.expand import expand
from engine.prep.search import EXPANDED, parse
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.prep.conftest import write
from tests.prep.service import LoopbackService, completion


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def expanded(out: Path, source: str = "triples/train.jsonl") -> Path:
    """A folder in which ten rows were made."""
    seeds = SourceOptions(source=source)
    with LoopbackService() as service:
        options = ExpandOptions(base_url=service.url, samples=10)
        expand(read_rows.locate(seeds, Path.cwd()), seeds, options, out, quiet)
    return out


def opened(home: Home, directory: Path, *sources: dict[str, Any]) -> Browser:
    text = json.dumps({"data": {"train": list(sources)}})
    return Browser(profile.parse(text, "test.json", directory, home=home), home, quiet)


def test_rows_are_decided_and_the_sources_follow(bare_home: Home, tmp_path: Path) -> None:
    expanded(tmp_path / "more")
    write(tmp_path / "own.jsonl", *({"prompt": f"q{n}", "completion": "a"} for n in range(3)))
    browser = opened(bare_home, tmp_path, {"source": "own.jsonl"}, {"source": "more"})
    summary = browser.summary()
    assert summary["parts"] == {"train": 13, "validation": 0, "test": 0, "expanded": 10, "rejected": 0}
    assert summary["rows"] == 13 and summary["decisions"] == {"accepted": 0, "dropped": 0, "undecided": 10}
    first, second = browser.rows(EXPANDED, 4, 2)["rows"]
    assert (first["at"], first["decision"], first["line"]) == (4, "undecided", 5)
    origin = first["origin"]
    assert (origin["task"], origin["request"], origin["item"], len(origin["seeds"])) == ("triples", 1, 5, 3)
    assert (second["origin"]["request"], second["origin"]["item"]) == (2, 1)
    assert origin["seeds"][0]["messages"][-1]["role"] == "assistant"
    told = browser.decide(4, "dropped")
    assert told == {"before": "undecided", "decisions": {"accepted": 0, "dropped": 1, "undecided": 9}, "index": 4}
    browser.decide(0, "accepted")
    assert browser.reread(quiet)["parts"]["train"] == 12
    shown = [row["raw"] for row in browser.rows("train", 3, 9)["rows"]]
    assert shown == (tmp_path / "more" / "rows.jsonl").read_text().splitlines() and first["raw"] not in shown
    again = opened(bare_home, tmp_path, {"source": "more/rows.jsonl"})
    assert [row["decision"] for row in again.rows(EXPANDED, 0, 5)["rows"]] == [
        "accepted",
        *["undecided"] * 3,
        "dropped",
    ]
    assert again.decide(4, "accepted")["before"] == "dropped" and again.reread(quiet)["parts"]["train"] == 10


def test_rows_are_found_by_decision(home: Home, tmp_path: Path) -> None:
    browser = opened(home, tmp_path, {"source": str(expanded(tmp_path / "more"))})
    browser.decide(3, "accepted")
    assert browser.narrow(EXPANDED, parse("is:undecided"), quiet) == 9
    assert [row["at"] for row in browser.rows(EXPANDED, 2, 2)["rows"]] == [2, 4]
    assert browser.decide(4, "dropped")["index"] == 3 and browser.decide(3, "undecided")["index"] is None
    assert browser.narrow(EXPANDED, parse("is:dropped"), quiet) == 1
    assert browser.tokens(EXPANDED, 0)["trained"] > 0, "what is narrowed is shown in every way"
    with pytest.raises(ValueError, match="only expanded rows are accepted and dropped: is:dropped finds none in train"):
        browser.narrow("train", parse("is:dropped"), quiet)
    with pytest.raises(ValueError, match="is:lost finds nothing; write is:accepted, is:dropped, is:undecided"):
        parse("is:lost")
    with pytest.raises(ValueError, match="there is no expanded row 10"):
        browser.decide(10, "dropped")
    with pytest.raises(ValueError, match="maybe is not a decision"):
        browser.decide(1, "maybe")


def test_when_all_are_dropped_nothing_is_left_to_train_on(bare_home: Home, tmp_path: Path) -> None:
    browser = opened(bare_home, tmp_path, {"source": str(expanded(tmp_path / "more"))})
    for at in range(10):
        browser.decide(at, "dropped")
    assert browser.reread(quiet)["parts"] == {"train": 0, "validation": 0, "test": 0, "expanded": 10, "rejected": 0}
    assert opened(bare_home, tmp_path, {"source": "more"}).summary()["decisions"]["dropped"] == 10


def test_a_thought_graph_is_decided_as_one_row(bare_home: Home, tmp_path: Path) -> None:
    def graph(question: str) -> dict[str, Any]:
        sides = [
            {"id": f"s{n}", "text": f"side {n}", "arguments": [{"id": f"a{n}", "text": "because"}]} for n in range(2)
        ]
        return {"question": question, "standpoints": sides, "counter_questions": [{"id": "c", "text": "Really?"}]}

    seeds = write(tmp_path / "seeds.jsonl", graph("Is time real?"))
    source = SourceOptions(source=str(seeds))
    made = [graph("Can machines grieve?"), graph("Why do we laugh?")]
    with LoopbackService(lambda _number, _body: completion(json.dumps(made))) as service:
        options = ExpandOptions(base_url=service.url, samples=2)
        expand(read_rows.locate(source, tmp_path), source, options, tmp_path / "more", quiet)
    browser = opened(bare_home, tmp_path, {"source": "more"})
    parts = browser.summary()["parts"]
    assert parts["expanded"] == 2 and parts["train"] > 2
    assert [json.loads(row["raw"]) for row in browser.rows(EXPANDED, 0, 2)["rows"]] == made
    browser.decide(1, "dropped")
    assert list(decisions.read_kept(tmp_path / "more")) == made[:1]
    assert browser.reread(quiet)["parts"]["train"] == parts["train"] // 2


def test_an_expansion_that_is_damaged_is_named(bare_home: Home, tmp_path: Path) -> None:
    out = expanded(tmp_path / "more")
    (out / "answers.jsonl").write_text("{broken\n")
    with pytest.raises(ProblemError, match=r"the expansion in .*more cannot be read"):
        opened(bare_home, tmp_path, {"source": "more"})
