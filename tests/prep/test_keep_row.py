"""A conversation kept as a row: in the format of the file that it goes to, or of the run's data."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.prep import detect_format
from engine.prep.formats.canonical import make_conversation
from engine.prep.keep_row import keep_row
from engine.protocol.home import Home

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is 巴黎?\nSay it."},
    {"role": "assistant", "content": "In France. 🙂"},
]
EXAMPLES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "prompt_completion": {"prompt": "a", "completion": "b"},
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_row_has_the_format_of_the_file(name: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(EXAMPLES[name]) + end)
    assert keep_row(path, MESSAGES, Home(tmp_path)) == {"path": str(path), "format": name, "added": True}
    assert not keep_row(path, MESSAGES, Home(tmp_path))["added"], "the same row is not added twice"
    first, row = read(path)
    assert first == EXAMPLES[name] and detect_format.detect([row]) == name
    assert detect_format.convert(name, row) == [make_conversation(MESSAGES)]


def make_run(home: Home, source: dict[str, Any]) -> str:
    directory = home.run("r-1")
    directory.path.mkdir(parents=True)
    (directory.path / "job.json").write_text(json.dumps({"directory": str(home.root)}))
    directory.profile.write_text(f"name: r\nmodel: {{base: x}}\ndata: {{train: [{json.dumps(source)}]}}\n")
    return "r-1"


def test_a_new_file_is_as_the_runs_data(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    (home.root / "rows.jsonl").write_text(json.dumps({"ask": "a", "say": "b"}) + "\n")
    columns = {"instruction": "ask", "output": "say"}
    run = make_run(home, {"source": "rows.jsonl", "format": "alpaca", "columns": columns})
    path = tmp_path / "new" / "cases.jsonl"
    assert keep_row(path, MESSAGES, home, run)["format"] == "alpaca"
    (row,) = read(path)
    assert (row["ask"], row["say"]) == (MESSAGES[1]["content"], MESSAGES[2]["content"])
    other = [*MESSAGES[:-1], {"role": "assistant", "content": "Far."}]
    assert keep_row(path, other, home, run)["format"] == "alpaca"
    assert [each["say"] for each in read(path)] == [MESSAGES[2]["content"], "Far."], "in its own columns again"
    (home.root / "rows.jsonl").unlink()  # the data are gone, or the run is: any conversation fits messages
    for at, named in enumerate((run, "no such run", "")):
        assert keep_row(tmp_path / f"{at}.jsonl", MESSAGES, home, named)["format"] == "messages"
        assert read(tmp_path / f"{at}.jsonl") == [{"messages": MESSAGES}]


def test_what_is_refused_changes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no JSONL file"):
        keep_row(tmp_path / "rows.json", MESSAGES, Home(tmp_path))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="not a file"):
        keep_row(tmp_path / "folder.jsonl", MESSAGES, Home(tmp_path))
    unknown = tmp_path / "other.jsonl"
    unknown.write_text('{"x": 1}\n')
    with pytest.raises(ValueError, match="no known format"):
        keep_row(unknown, MESSAGES, Home(tmp_path))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"content": "a", "summary": "b"}\n')
    several = [*MESSAGES, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]
    with pytest.raises(ValueError, match="content_summary"):
        keep_row(pairs, several, Home(tmp_path))
    assert unknown.read_text() == '{"x": 1}\n' and pairs.read_text() == '{"content": "a", "summary": "b"}\n'


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(EXAMPLES["alpaca"]).encode("utf-16"),
        json.dumps([EXAMPLES["alpaca"]], indent=1).encode(),
        b"a,b\n1,2\n",
        bytes(range(256)),
    ],
)
def test_a_file_of_another_kind_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="give another name"):
        keep_row(path, MESSAGES, Home(tmp_path))
    assert path.read_bytes() == content


def test_half_a_row_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(EXAMPLES["alpaca"]))

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        keep_row(path, MESSAGES, Home(tmp_path))
    assert read(path) == [EXAMPLES["alpaca"]] and not path.read_text().endswith("\n")
