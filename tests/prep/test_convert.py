"""`cockpit data convert`: whole rows in another format, the rest named; killed and run again it gives the same
bytes."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.config.bundled import find_bundled
from engine.prep import detect_format, outputs
from engine.prep.verbs import convert
from engine.protocol.home import Home
from tests.prep.conftest import chat, write
from tests.prep.test_formats import GRAPH


def home_of(out: Path) -> Home:
    return Home(out.parent.with_name(f"{out.parent.name}-home"))


def run(file: Path | str, to: str, out: Path, format: str = "auto") -> dict[str, Any]:
    told: list[tuple[str, int, int]] = []
    options = argparse.Namespace(file=str(file), format=format, to=to, out=str(out))
    result = convert.run(home_of(out), options, lambda *progress: told.append(progress))
    assert not told or (told[-1][0] == "converting" and told[-1][1] == told[-1][2])
    return result


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_go_over_whole_and_those_that_cannot_are_named(tmp_path: Path) -> None:
    weighed = chat("q", "a")
    weighed["messages"][1]["weight"] = 0
    source = write(
        tmp_path / "in.jsonl", chat("q", "a") | {"topic": "二"}, "not JSON", weighed, "", chat("q", "a", "r", "b")
    )
    result = run(source, "alpaca", tmp_path / "out/rows.jsonl")
    rejects = tmp_path / "out/rows.rejects.jsonl"
    assert result == {
        "rows": 4,
        "converted": 2,
        "rejected": 2,
        "file": str(tmp_path / "out/rows.jsonl"),
        "rejects": str(rejects),
    }
    assert rows(tmp_path / "out/rows.jsonl") == [
        {"instruction": "q", "input": "", "output": "a", "topic": "二"},
        {"instruction": "r", "input": "", "output": "b", "history": [["q", "a"]]},
    ]
    named = rows(rejects)
    content = source.read_bytes()
    assert [(each["file"], each["line"]) for each in named] == [(str(source), 2), (str(source), 3)]
    assert content[named[0]["offset"] :].startswith(b"not JSON")
    assert "weight of turn 2" in named[1]["reason"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rows.jsonl", "rows.rejects.jsonl"]


def test_a_graph_expands_and_comes_back(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", GRAPH, GRAPH | {"question": "为什么？", "category": "c"})
    over = run(source, "sharegpt", tmp_path / "over.jsonl")
    assert (over["rows"], over["converted"], over["rejected"], over["rejects"]) == (2, 8, 0, None)
    back = run(tmp_path / "over.jsonl", "thought_graph", tmp_path / "back.jsonl")
    assert (back["rows"], back["converted"], back["rejected"]) == (8, 2, 6)
    assert rows(tmp_path / "back.jsonl") == rows(source)


def test_rows_that_have_the_shape_stay_as_they_are(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "more", "output": "a", "history": []}
    source = write(tmp_path / "in.jsonl", row, {"instruction": "q", "output": ""})
    result = run(source, "alpaca", tmp_path / "out.jsonl")
    assert (rows(tmp_path / "out.jsonl"), result["rejected"]) == ([row], 1)


def test_every_kind_of_file_and_folder_is_read_and_an_older_list_of_rejects_goes(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    line = json.dumps({"prompt": "q", "completion": "a"}) + "\n"
    (tmp_path / "set/1.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "set/2.json").write_text(json.dumps([chat("r", "b")]), encoding="utf-8")
    (tmp_path / "set/3.csv").write_text("question,answer\ns,c\n", encoding="utf-8")
    with outputs.writing(home_of(tmp_path / "out.jsonl"), tmp_path / "out.rejects.jsonl"):
        (tmp_path / "out.rejects.jsonl").write_text("old\n", encoding="utf-8")
    result = run(tmp_path / "set", "prompt_completion", tmp_path / "out.jsonl")
    assert (result["rows"], result["converted"]) == (3, 3)
    assert [tuple(row.values())[:2] for row in rows(tmp_path / "out.jsonl")] == [("q", "a"), ("r", "b"), ("s", "c")]
    assert not (tmp_path / "out.rejects.jsonl").exists()


def test_what_cannot_be_meant_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", chat("q", "a"))
    for to, out, format, reason in (
        ("alpca", "out.jsonl", "auto", "there is no format 'alpca', did you mean alpaca"),
        ("auto", "out.jsonl", "auto", "there is no format 'auto'"),
        ("alpaca", "out.jsonl", "mesages", "there is no format 'mesages', did you mean messages"),
        ("alpaca", "out.csv", "auto", "ends in .jsonl"),
        ("alpaca", "in.jsonl", "auto", "is what the rows are read from"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(source, to, tmp_path / out, format)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert rows(source) == [chat("q", "a")]


def command(file: Path, to: str, out: Path, home: Path) -> list[str]:
    options = json.dumps({"file": str(file), "format": "auto", "to": to, "out": str(out)})
    return [
        sys.executable,
        "-P",
        "-m",
        "engine.workers.data_tool",
        "data",
        "convert",
        options,
        "--home",
        str(home),
        "--json",
    ]


def test_the_verb_prints_its_counts_as_json(tmp_path: Path) -> None:
    source = find_bundled("data") / "samples/sharegpt.jsonl"
    done = subprocess.run(
        command(source, "messages", tmp_path / "out.jsonl", tmp_path / "home"),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert (told["rows"], told["converted"], told["rejected"]) == (12, 12, 0)
    canonical = [detect_format.convert("sharegpt", row)[0] for row in rows(source)]
    assert [detect_format.convert("messages", row)[0] for row in rows(Path(told["file"]))] == canonical


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_gives_the_same_bytes(tmp_path: Path) -> None:
    choice = random.Random(7)
    with (tmp_path / "in.jsonl").open("w", encoding="utf-8") as file:
        for number in range(12_000):
            row = (
                chat(f"question {number} " + "x" * choice.randrange(2500), "answer 二")
                if number % 50
                else {"bad": number}
            )
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    whole = tmp_path / "whole.jsonl"
    start = time.monotonic()
    subprocess.run(command(tmp_path / "in.jsonl", "alpaca", whole, tmp_path / "home"), check=True, capture_output=True)
    lasted = time.monotonic() - start
    out, killed = tmp_path / "out.jsonl", 0
    for _ in range(5):
        process = subprocess.Popen(
            command(tmp_path / "in.jsonl", "alpaca", out, tmp_path / "home"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(choice.uniform(0.3, 0.8) * lasted)
        killed += process.poll() is None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    assert killed
    done = subprocess.run(
        command(tmp_path / "in.jsonl", "alpaca", out, tmp_path / "home"), check=True, capture_output=True, text=True
    )
    told = json.loads(done.stdout)
    assert (told["rows"], told["converted"], told["rejected"]) == (12_000, 11_760, 240)
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "out.rejects.jsonl").read_bytes() == (tmp_path / "whole.rejects.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(".out")]
