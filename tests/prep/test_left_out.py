"""Rows that tokenising leaves out are listed with the bad ones; a search that is not understood says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse as parse_profile
from engine.prep.browse import REJECTED, Browser
from engine.prep.prepare import prepare
from engine.prep.search import parse
from engine.protocol.home import Home


def quiet(*_: object) -> None: ...


@pytest.fixture
def profile(tmp_path: Path, home: Home) -> Any:
    """Three rows that are trained, one that is not JSON, and two that are cut before their reply."""
    rows = [{"prompt": f"q{n}", "completion": "a"} for n in range(3)]
    long = [{"prompt": "word " * 200, "completion": f"late {n}"} for n in range(2)]
    lines = [json.dumps(row) for row in (rows[0], long[0], *rows[1:], long[1])]
    (tmp_path / "my.jsonl").write_text("\n".join([*lines[:2], "{broken", *lines[2:]]) + "\n")
    text = "data: {train: my.jsonl, max_length: 64, max_rejected: 0.5}"
    return parse_profile(text, "p.yaml", tmp_path, home=home)


def test_the_data_screen_lists_them_with_their_reasons(profile: Any, home: Home) -> None:
    browser = Browser(profile, home, quiet)
    assert browser.total(REJECTED) == 1
    numbers = browser.stats("train", quiet)
    assert (numbers["rows"], numbers["masked"], numbers["rejected"]) == (3, 2, 3)
    cut = "tokenize: cut at 64 tokens, before any that is trained"
    assert [(row["line"], row["reason"]) for row in numbers["dropped"]] == [(2, cut), (6, cut)]
    shown = browser.rows(REJECTED, 0, 10)["rows"]
    assert [row["line"] for row in shown] == [3, 2, 6] and shown[2]["reason"] == cut
    assert shown[2]["messages"][-1]["content"] == "late 1" and json.loads(shown[2]["raw"])["completion"] == "late 1"
    assert browser.narrow(REJECTED, parse("late"), quiet) == 2
    assert browser.rows(REJECTED, 0, 10)["rows"][0]["line"] == 2
    assert browser.stats("train", quiet)["rejected"] == 3  # counting again adds none


def test_a_run_names_them_in_its_rejects_and_does_not_count_them_as_bad(profile: Any, home: Home) -> None:
    prepared = prepare(profile, home, quiet)
    lines = [json.loads(line) for line in Path(prepared["rejects"]).read_text().splitlines()]
    assert [line["line"] for line in lines] == [3, 2, 6] and "cut at 64 tokens" in lines[2]["reason"]
    assert prepared["rejected"] == 1


@pytest.mark.parametrize("query", ["foo>3", "chars>=20", "tokens<many", "sources:wiki", "Is:dropped"])
def test_what_looks_like_a_condition_and_is_none_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="is not understood"):
        parse(query)
    assert parse(f'"{query}"').words == (query.lower(),)


def test_text_is_searched_as_it_was() -> None:
    assert parse("http://x.org 10:30 <b> 3>2 note: → x").words == (
        "http://x.org",
        "10:30",
        "<b>",
        "3>2",
        "note:",
        "→",
        "x",
    )
