"""`cockpit data inspect`: shape, rows, columns, a row as training sees it."""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.prep.verbs import inspect
from engine.protocol.home import Home
from tests.prep.conftest import chat, write

ALPACA = [{"instruction": f"q{number}", "input": "", "output": f"a{number}", "category": "c"} for number in range(5)]


def asked(home: Home, file: str | Path, shape: str = "auto") -> dict[str, Any]:
    return inspect.run(home, argparse.Namespace(file=str(file), format=shape), lambda *_: None)


def test_rows_are_counted_good_and_bad_and_the_first_good_one_is_shown(bare_home: Home, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{oops", {"instruction": "q", "output": 3}, *ALPACA)
    assert asked(bare_home, path) == {
        "shape": "alpaca",
        "rows": 7,
        "columns": ["instruction", "output", "input", "category"],
        "sample": {"messages": [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]},
        "unused_columns": {"category": 5},
        "rejected": 2,
        "reasons": {"not JSON": 1, "output is a number, not text": 1},
    }


def test_folders_and_globs_are_one_set(bare_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/a.jsonl", *ALPACA)
    (tmp_path / "set/b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "set/a.jsonl").read_bytes()))
    (tmp_path / "set/c.json").write_text(json.dumps(ALPACA))
    assert asked(bare_home, "set")["rows"] == 15
    assert asked(bare_home, "set/*.json*")["rows"] == 15
    assert asked(bare_home, "set/?.jsonl")["rows"] == 5


def test_a_preference_row_is_shown_as_prompt_chosen_rejected(bare_home: Home, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad", "source": "s"}] * 3
    found = asked(bare_home, write(tmp_path / "rows.jsonl", *rows))
    assert (found["shape"], found["columns"]) == ("preference", ["prompt", "chosen", "rejected", "source"])
    assert found["sample"] == {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def test_progress_is_in_bytes_of_all_files(bare_home: Home, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, *ALPACA)
    told: list[Any] = []
    inspect.run(bare_home, argparse.Namespace(file=str(tmp_path), format="auto"), lambda *each: told.append(each))
    total = 2 * (tmp_path / "a.jsonl").stat().st_size
    assert told[-1] == ("reading", total, total) and told == sorted(told)


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        ([], "auto", "holds no rows"),
        (["{"], "auto", "holds 1 rows, none of which can be read"),
        ([{"foo": 1}], "auto", "no known format has the columns foo"),
        ([{"text": "t"}], "alpca", "alpca: there is no such format, did you mean alpaca"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(
    rows: list[Any], shape: str, message: str, bare_home: Home, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        asked(bare_home, write(tmp_path / "rows.jsonl", *rows), shape)


def test_tokens_are_no_rows(bare_home: Home, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"input_ids": [1], "labels": [1]}]).save_to_disk(str(tmp_path / "tokens"))
    with pytest.raises(ValueError, match="tokens holds tokens already"):
        asked(bare_home, tmp_path / "tokens")


@pytest.mark.slow
def test_the_verb(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", chat("q", "a"))
    command = [sys.executable, "-m", "cockpit.cli", "data", "inspect", path.name, "--json", "--home", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "shape": "messages",
        "rows": 1,
        "columns": ["messages"],
        "sample": chat("q", "a"),
    }
    command[5] = "row.jsonl"
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "did you mean rows.jsonl?" in json.loads(failed.stdout)["error"]["cause"]
