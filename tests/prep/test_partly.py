"""The stages of a profile one by one: rows that leave each of them, from the cache where they were made before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.bundled import find_bundled
from engine.prep import partial
from engine.prep.browse import Browser
from engine.prep.expand import decisions
from engine.prep.prepare import prepare
from engine.prep.search import EXPANDED, parse
from engine.prep.stages import pipeline, row_files
from engine.protocol.home import Home
from tests.prep.conftest import ProfileOver, chat
from tests.prep.service import LoopbackService

ROWS: list[Any] = [
    *({**chat(f"question number {n}", f"answer {n}"), "kind": f"k{n % 2}"} for n in range(12)),
    {**chat("question number 3", "answer 3"), "kind": "k1"},
    "{broken",
    {**chat("q", "x" * 500), "kind": "k0"},
]
DATA: dict[str, Any] = {
    "clean": {"max_chars": 400},
    "dedup": {"near": False},
    "split": {"validation": 0.25},
    "max_rows": 5,
    "max_rejected": 0.5,
}


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def count(rows: pipeline.StageRows, part: str = "train") -> int:
    return sum(1 for _ in row_files.read_file(rows.parts[part]))


def test_what_leaves_each_stage_is_made_once(
    home: Home, profile_over: ProfileOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profile_over(ROWS, **DATA)
    assert partial.list_stages(profile) == ["validate", "clean", "dedup", "split", "tokenize"]
    done: list[str] = []

    def watched(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def told(*given: Any) -> Any:
            done.append(name)
            return own(*given)

        return told

    for name in ("validate", "clean", "dedup", "split", "weigh"):
        monkeypatch.setattr(pipeline, name, watched(name, getattr(pipeline, name)))
    cleaned = partial.run_until(profile, "clean", home, quiet).rows
    assert (count(cleaned), done) == (13, ["validate", "clean"])
    unique = partial.run_until(profile, "dedup", home, quiet).rows
    assert (count(unique), done) == (12, ["validate", "clean", "dedup"]), "what was done is taken from the cache"
    assert [(stage["name"], stage["in"], stage["out"]) for stage in unique.stages] == [
        ("validate", 15, 14),
        ("clean", 14, 13),
        ("dedup", 13, 12),
    ]
    assert count(partial.run_until(profile, "clean", home, quiet).rows) == 13 and len(done) == 3
    whole = partial.run_until(profile, "tokenize", home, quiet).rows
    assert done == ["validate", "clean", "dedup", "split", "weigh"] and count(whole) == 5
    prepared = prepare(profile, home, quiet)
    assert prepared["rows"] == 5 and len(done) == 5, "the run goes on from there, too"
    with pytest.raises(
        ValueError, match="the profile has no stage balance, only validate, clean, dedup, split, tokenize"
    ):
        partial.run_until(profile, "balance", home, quiet)


def test_one_by_one_gives_the_same_rows_as_all_at_once(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    profile = profile_over(ROWS, **DATA)
    there = Home(tmp_path / "other")
    for stage in partial.list_stages(profile):
        stepwise = partial.run_until(profile, stage, home, quiet).rows
    at_once = partial.run_until(profile, "tokenize", there, quiet).rows
    assert stepwise.parts.keys() == at_once.parts.keys() == {"train", "validation"}
    for part, path in at_once.parts.items():
        assert stepwise.parts[part].read_bytes() == path.read_bytes()
    assert stepwise.stages == at_once.stages
    first, second = ([path.read_bytes() for path in rows.rejects] for rows in (stepwise, at_once))
    assert b"".join(first) == b"".join(second)


def test_a_stage_that_is_given_up_goes_on_where_it_was(home: Home, profile_over: ProfileOver) -> None:
    class Enough(Exception):
        """Whoever watches has seen enough."""

    def stop(phase: str, _done: int, _total: int) -> None:
        if "dup" in phase:
            raise Enough

    profile = profile_over(ROWS, **DATA)
    with pytest.raises(Enough):
        partial.run_until(profile, "dedup", home, stop)
    kept = {path.name for path in home.cache.glob("work-data-*/rows/*.json")}
    assert "clean.train.json" in kept and "dedup.train.json" not in kept
    assert count(partial.run_until(profile, "dedup", home, quiet).rows) == 12
    assert not list(home.cache.glob("work-*"))


def test_the_rows_that_leave_a_stage_are_browsed(home: Home, profile_over: ProfileOver) -> None:
    profile = profile_over(ROWS, **DATA)
    browser = Browser(profile, home, quiet)
    left = partial.run_until(profile, "dedup", home, quiet).rows
    assert browser.show(left, quiet) == {"train": 12, "validation": 0, "test": 0, "rejected": 3}
    row = browser.rows("train", 3, 1)["rows"][0]
    assert row["messages"] == ROWS[3]["messages"] and row["line"] == 4 and row["file"].endswith("rows.jsonl")
    assert browser.tokens("train", 3)["trained"] > 0
    assert browser.narrow("train", parse("kind=k1"), quiet) == 6
    assert browser.narrow("train", parse("source:rows.jsonl number"), quiet) == 12
    reasons = [(each["line"], each["reason"].partition(":")[0]) for each in browser.rows("rejected", 0, 9)["rows"]]
    assert sorted(reasons) == [(13, "dedup"), (14, "validate"), (15, "clean")]
    assert browser.narrow("rejected", parse("dedup"), quiet) == 1
    assert '"question number 3"' in browser.rows("rejected", 0, 1)["rows"][0]["raw"]
    assert browser.show(None, quiet) == {"train": 14, "validation": 0, "test": 0, "rejected": 1}


def test_rows_that_a_profile_has_made_are_decided(home: Home, profile_over: ProfileOver) -> None:
    with LoopbackService() as service:
        seeds = (find_bundled("data") / "triples" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:12]
        profile = profile_over(list(seeds), expand={"samples": 5, "base_url": service.url})
        assert partial.list_stages(profile) == ["expand", "validate", "tokenize"]
        browser = Browser(profile, home, quiet)
        left = partial.run_until(profile, "expand", home, quiet)
        assert left.expansion is not None
        browser.add_review(left.expansion, left.forms)
        assert browser.show(left.rows, quiet) == {"train": 17, "validation": 0, "test": 0, "expanded": 5, "rejected": 0}
        assert browser.rows(EXPANDED, 2, 1)["rows"][0]["origin"]["task"] == "triples"
        browser.decide(2, "dropped")
        assert len(list(decisions.read_kept(left.expansion))) == 4
        again = partial.run_until(profile, "expand", home, quiet)
        assert browser.show(again.rows, quiet)["train"] == 16, "a dropped row takes no part"
        assert len(service.prompts) == 1
