"""Profiles that are written from data: what they say of the rows is true, and their text is a valid profile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse
from engine.prep import draft
from engine.prep.browse import Browser
from engine.prep.draft import Base, Rows
from engine.prep.rows import too_many
from engine.prep.token_rows import Counts, percentile
from engine.protocol.home import Home


def counted(lengths: dict[int, int], **further: Any) -> Callable[[Any], dict[str, Any]]:
    counts = Counts(rows=sum(lengths.values()), lengths=Counter(lengths), **further)
    found = counts.summary() | {"p99": percentile(counts.lengths, 99), "lengths": sorted(lengths.items())}
    return lambda _: found


def write(folder: Path, measure: Callable[[Any], Any], name: str = "mine") -> dict[str, Any]:
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    opened = parse("data: {train: rows.jsonl}", "p.yaml", folder)
    return draft.draft(opened, Rows(200, 0, ("auto",), "conversations"), Base("some/base", "it is"), measure, name=name)


@pytest.mark.parametrize("name", ["2024", "1e5", "True", "null", "a: b # c", "mine"])
def test_its_name_is_read_as_it_was_given(name: str, tmp_path: Path) -> None:
    facts = write(tmp_path, counted({100: 200}), name)
    assert parse(facts["profile"], "d.yaml", tmp_path, elsewhere=True).name == name
    assert "all of them fit" in facts["profile"] and "no row cut" in "\n".join(draft.describe(facts))


@pytest.mark.parametrize(("usual", "length"), [(100, 128), (3900, 4096)])
def test_rows_that_were_cut_to_measure_them_are_not_said_to_fit(usual: int, length: int, tmp_path: Path) -> None:
    few = 1 if length == 128 else 10
    measure = counted({usual: 200, draft.LONGEST: few}, truncated=few + 3, masked=3)
    facts = write(tmp_path, measure)
    assert (facts["max_length"], facts["cut"], facts["measured"]) == (length, few + 3, 203 + few)
    assert f"longest more than 4096 tokens: {few + 3} of {203 + few} are cut" in facts["profile"]
    assert f"the longest more than 4096, {few + 3} of {203 + few} rows cut" in "\n".join(draft.describe(facts))


def test_names_of_a_catalogue_and_held_out_rows_are_kept(
    home: Home, light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(30)]
    for name in ("own.jsonl", "held.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "info.json").write_text(json.dumps({"mine": {"file_name": "own.jsonl"}}))
    text = "data: {catalog: info.json, train: [{source: mine, weight: 2}], validation: held.jsonl, max_rejected: 0.5}"
    monkeypatch.setattr(draft, "choose_base", lambda *_: Base(light.name, "it is there"))
    browser = Browser(parse(text, "p.yaml", tmp_path, home=home), home, lambda *_: None)
    found = draft.draft_from(browser, home, "mine", lambda *_: None)
    data = parse(found["profile"], "d.yaml", Path("/"), home=home, rows=True).data
    (train,), (held,) = data.train, data.validation
    assert (train.source, train.weight) == (str(tmp_path / "own.jsonl"), 2) and held.source == str(
        tmp_path / "held.jsonl"
    )
    assert data.split is None and data.max_rejected == 0.5


def test_a_share_of_bad_rows_that_is_the_limit_is_allowed() -> None:
    for bad in range(101):
        limit = float(f"{bad / 100:g}")
        assert not too_many(bad, 100, limit) and too_many(bad + 1, 100, limit)
    assert not too_many(0, 0, 0)
