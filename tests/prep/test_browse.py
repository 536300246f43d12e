"""The Data screen's rows: random access to any kind of file, with places that are the file's own."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from engine.config.profile import Profile, parse
from engine.prep.browse import Browser
from engine.prep.files.copies import copy_rows
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.prep.conftest import chat, write

ALPACA = [{"instruction": f"question {at}", "input": "", "output": f"answer {at}"} for at in range(1200)]

Over = Callable[..., Profile]


@pytest.fixture
def over(bare_home: Home, tmp_path: Path) -> Over:
    """A profile whose training sources are these."""

    def make(*sources: dict[str, Any]) -> Profile:
        return parse(json.dumps({"data": {"train": list(sources)}}), "test.json", tmp_path, home=bare_home)

    return make


def opened(profile: Profile, home: Home) -> Browser:
    return Browser(profile, home, lambda *_: None)


def write_as(path: Path) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ALPACA), path, row_group_size=100)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ALPACA).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ALPACA, indent=1))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ALPACA[0])
            writer.writeheader()
            writer.writerows(ALPACA)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.json", "rows.jsonl.gz"])
def test_any_kind_is_entered_in_the_middle(name: str, over: Over, bare_home: Home, tmp_path: Path) -> None:
    write_as(tmp_path / name)
    told: list[tuple[int, int]] = []
    browser = Browser(over({"source": name}), bare_home, lambda *each: told.append(each))
    assert told == sorted(told) and told[-1][0] <= told[-1][1] == (tmp_path / name).stat().st_size
    (source,) = browser.summary()["sources"]
    assert (source["format"], source["rows"], source["rejected"]) == ("alpaca", 1200, 0)
    shown = browser.rows("train", 1100, 2)
    assert shown["total"] == 1200
    assert [row["messages"] for row in shown["rows"]] == [
        chat(f"question {at}", f"answer {at}")["messages"] for at in (1100, 1101)
    ]
    assert json.loads(shown["rows"][0]["raw"]) == ALPACA[1100]
    (indexed,) = browser.parts["train"][0]
    line = {".parquet": 1101, ".csv": 1102, ".json": 2 + 1100 * 5, ".gz": 1101}[Path(name).suffix]
    assert indexed.lines[1100] == line and indexed.row(1100)[:2] == (str(tmp_path / name), line)
    assert sum(column.itemsize for column in (indexed.lines, indexed.offsets, indexed.ends)) == 24


def test_bad_rows_of_a_copy_are_counted_and_named(over: Over, bare_home: Home, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("instruction,output\nq,a\none\n,\n\nq2,a2\n")
    browser = opened(over({"source": "rows.csv"}), bare_home)
    (source,) = browser.summary()["sources"]
    assert (source["rows"], source["rejected"]) == (2, 2)
    assert sorted((each.line, str(each.path)) for each in browser.problems) == [
        (3, str(tmp_path / "rows.csv")),
        (4, str(tmp_path / "rows.csv")),
    ]
    assert browser.parts["train"][0][0].lines.tolist() == [2, 6]


def test_a_copy_is_made_once_for_one_content(bare_home: Home, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nt\n")
    (tmp_path / "b.csv").write_text("text\nt\n")
    first = copy_rows(tmp_path / "a.csv", bare_home, lambda _: None)
    made = first.rows.stat().st_mtime_ns
    assert copy_rows(tmp_path / "b.csv", bare_home, lambda _: None) == first and first.rows.stat().st_mtime_ns == made
    (tmp_path / "b.csv").write_text("text\nother\n")
    assert copy_rows(tmp_path / "b.csv", bare_home, lambda _: None) != first
    assert len([path for path in bare_home.cache.iterdir() if not path.name.startswith(".")]) == 2


def test_what_cannot_be_read_leaves_no_copy(over: Over, bare_home: Home, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ProblemError, match=r"rows\.parquet cannot be read: it is damaged, or no \.parquet file"):
        opened(over({"source": "rows.parquet"}), bare_home)
    assert list(bare_home.cache.iterdir()) == []


def test_several_files_are_one_source(over: Over, bare_home: Home, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number, name in enumerate(("a.jsonl", "b.jsonl", "c.jsonl")):
        write(tmp_path / "set" / name, *(chat(f"{number}{at}", "a") for at in range(10)))
    browser = opened(over({"source": "set"}), bare_home)
    (source,) = browser.summary()["sources"]
    assert (source["rows"], source["files"]) == (30, 3)
    shown = browser.rows("train", 9, 2)["rows"]
    assert [row["messages"][0]["content"] for row in shown] == ["09", "10"]
    limited = opened(over({"source": "set/*.jsonl", "max_rows": 12}), bare_home)
    assert limited.summary()["sources"][0]["rows"] == 12
    assert limited.rows("train", 11, 5)["rows"][-1]["messages"][0]["content"] == "11"


def test_rows_that_expand_are_entered_one_by_one(over: Over, bare_home: Home, tmp_path: Path) -> None:
    def graph(name: str) -> dict[str, Any]:
        return {
            "question": f"Why {name}?",
            "standpoints": [
                {"id": f"s{at}", "text": f"stand {at}", "arguments": [{"id": f"a{at}", "text": "because"}]}
                for at in range(2)
            ],
            "counter_questions": [{"id": "c1", "text": "Why not?"}],
        }

    write(tmp_path / "rows.jsonl", graph("one"), graph("two"))
    browser = opened(over({"source": "rows.jsonl"}), bare_home)
    (indexed,) = browser.parts["train"][0]
    each = len(indexed.lines) // 2
    assert each > 1 and indexed.lines.tolist() == [1] * each + [2] * each
    shown = browser.rows("train", 0, 100)["rows"]
    assert len(shown) == 2 * each and len({json.dumps(row["messages"]) for row in shown}) == 2 * each
    assert json.loads(shown[each]["raw"])["question"] == "Why two?"


def test_a_file_that_changed_is_said(over: Over, bare_home: Home, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", chat("q", "a"), chat("q2", "a2"))
    browser = opened(over({"source": "rows.jsonl"}), bare_home)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 has changed since it was opened"):
        browser.rows("train", 1, 1)


def test_preference_rows_are_shown_token_by_token(over: Over, home: Home, tmp_path: Path) -> None:
    from engine.prep.prepare import prepare
    from engine.training.batches import describe_batch

    write(
        tmp_path / "rows.jsonl",
        {"prompt": "Why?", "chosen": "Because 二 it is.", "rejected": "No " * 60},
        {"prompt": "q" * 999, "chosen": "a", "rejected": "b"},
    )
    write(tmp_path / "judged.jsonl", {"prompt": "Why?", "completion": "So.", "label": False})
    sources = {"data": {"train": [{"source": "rows.jsonl"}], "max_length": 80}}
    profile = parse(json.dumps(sources), "test.json", tmp_path, ["method.kind=dpo"], home)
    browser = opened(profile, home)
    shown = browser.tokens("train", 0)
    chosen, rejected = shown["parts"]
    assert [part["name"] for part in shown["parts"]] == ["chosen", "rejected"]
    texts = ["".join(piece["text"] for piece in part["pieces"]) for part in shown["parts"]]
    assert texts[0] == browser.render("train", 0)["training"] and texts[0].endswith("Because 二 it is.<|im_end|>\n")
    trained = "".join(piece["text"] for piece in chosen["pieces"] if piece["trained"])
    assert trained == "Because 二 it is.<|im_end|>\n"
    assert browser.render("train", 0)["same"] and browser.render("train", 0)["chat"] + trained == texts[0]
    assert len(rejected["pieces"]) == 80 and shown["cut"] > 0
    assert shown["tokens"] == len(shown["pieces"]) and shown["trained"] == sum(
        each["trained"] for each in shown["pieces"]
    )
    assert browser.length(browser.parts["train"][0][0].row(0).content) == 80 + shown["cut"]
    with pytest.raises(ValueError, match="cut at 80 tokens, before a reply begins"):
        browser.tokens("train", 1)
    counted = browser.stats("train", lambda *_: None)
    assert (counted["rows"], counted["masked"], counted["truncated"], counted["max"]) == (1, 1, 2, 80)

    batched = describe_batch(prepare(profile, home, lambda *_: None), profile, browser.tokenizer(), 1)
    assert batched["parts"] == [{**part, "sequence": 0} for part in shown["parts"]]
    judged = {"data": {"train": [{"source": "judged.jsonl"}], "max_length": 80}}
    (part,) = opened(parse(json.dumps(judged), "test.json", tmp_path, ["method.kind=kto"], home), home).tokens(
        "train", 0
    )["parts"]
    assert part["name"] == "bad" and [each["text"] for each in part["pieces"] if each["trained"]][:2] == ["So", "."]
