"""`cockpit data validate | clean | dedup | split | balance` as a shell runs them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.cli.conftest import Cockpit
from tests.prep.conftest import write

ROWS = [
    {"instruction": f"question {at} " + chr(97 + at) * 30, "output": f"answer {at}", "category": "ab"[at > 7]}
    for at in range(12)
]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(cockpit: Cockpit, *arguments: str) -> dict[str, Any]:
    done = cockpit("data", *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_validate_names_every_bad_row(cockpit: Cockpit, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[0], "{oops", "", {"instruction": 1, "output": "a"}, ROWS[1])
    told = result(cockpit, "validate", "rows.jsonl")
    assert (told["rows"], told["good"], told["rejected"]) == (4, 2, 2)
    assert told["reasons"] == {"instruction is int, not text": 1, "not JSON": 1} or sum(told["reasons"].values()) == 2
    rejects = lines(Path(told["rejects"]))
    assert [(each["file"], each["line"]) for each in rejects] == [(str(path), 2), (str(path), 4)]
    assert path.read_bytes()[rejects[0]["offset"] :].startswith(b"{oops\n")
    result(cockpit, "validate", "rows.jsonl", "--out", "checked")
    assert lines(tmp_path / "checked/rows.jsonl") == ROWS[:2]
    assert sorted(each.name for each in (tmp_path / "checked").iterdir()) == [
        "rejects.jsonl",
        "report.json",
        "rows.jsonl",
    ]


def test_a_folder_of_several_kinds_is_one_set(cockpit: Cockpit, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/a.jsonl", ROWS[0])
    (tmp_path / "set/b.csv").write_text("prompt,completion\nwhy?,because\nwhy?,because\n")
    with gzip.open(tmp_path / "set/c.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    told = result(cockpit, "dedup", "set", "--out", "out")
    assert (told["rows"], told["kept"], told["exact"], told["near"]) == (4, 2, 2, 0)
    assert lines(tmp_path / "out/rows.jsonl") == [ROWS[0], {"prompt": "why?", "completion": "because"}]
    assert [(Path(each["file"]).name, each["line"]) for each in lines(tmp_path / "out/rejects.jsonl")] == [
        ("b.csv", 3),
        ("c.jsonl.gz", 1),
    ]


def test_clean_takes_rules_from_set(cockpit: Cockpit, tmp_path: Path) -> None:
    write(
        tmp_path / "rows.jsonl",
        {"instruction": "q", "output": "schÃ¶n"},
        {"instruction": "q", "output": " "},
        {"instruction": "q", "output": "a" * 50},
    )
    told = result(
        cockpit,
        "clean",
        "rows.jsonl",
        "--out",
        "out",
        "--set",
        "clean.max_chars=20",
        "--set",
        "data.clean.blanks=false",
    )
    assert (told["rows"], told["kept"], told["changed"], told["rejected"]) == (3, 1, 1, 2)
    assert told["rules"] == {
        "invalid": 0,
        "unicode": 1,
        "normalize": 0,
        "control_characters": 0,
        "empty": 1,
        "max_chars": 1,
    }
    assert lines(tmp_path / "out/rows.jsonl") == [{"instruction": "q", "output": "schön"}]
    wrong = cockpit("data", "clean", "rows.jsonl", "--out", "out", "--set", "clean.max_char=20", "--set", "nonsense")
    assert wrong.returncode == 2
    assert "did you mean max_chars" in wrong.stderr and "write it as clean.KEY=VALUE" in wrong.stderr


def test_split_and_balance(cockpit: Cockpit, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", *ROWS)
    told = result(cockpit, "split", "rows.jsonl", "--out", "out", "--validation", "0.25", "--stratify-by", "category")
    assert (told["rows"], told["train"], told["validation"], told["test"]) == (12, 9, 3, 0)
    parts = {part: lines(tmp_path / f"out/{part}.jsonl") for part in ("train", "validation", "test")}
    assert Counter(row["category"] for row in parts["validation"]) == {"a": 2, "b": 1}
    assert sorted(map(str, parts["train"] + parts["validation"])) == sorted(map(str, ROWS))
    told = result(cockpit, "balance", "rows.jsonl", "--out", "even", "--by", "category", "--to", "6")
    assert told["groups"] == {"a": [8, 6], "b": [4, 6]} and told["kept"] == 12 and told["repeated"] == 2
    assert Counter(row["category"] for row in lines(tmp_path / "even/rows.jsonl")) == {"a": 6, "b": 6}


def test_mistakes_are_one_clear_message(cockpit: Cockpit, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", *ROWS)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for arguments, message in (
        (("validate", "row.jsonl"), "did you mean rows.jsonl"),
        (("validate", "rows.jsonl", "--format", "alpacca"), "did you mean alpaca"),
        (("validate", "broken.parquet"), "broken.parquet"),
        (("validate", "rows.jsonl", "--out", "."), "holds rows.jsonl, which the rows are read from"),
        (("validate", "rows.jsonl", "--out", "rows.jsonl"), "is a file; name a folder"),
        (("balance", "rows.jsonl", "--out", "out", "--by", "topic"), "no row has the column topic"),
        (("split", "rows.jsonl", "--out", "out", "--validation", "2"), "must be less than 1"),
    ):
        done = cockpit("data", *arguments)
        assert done.returncode == 2 and message in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
