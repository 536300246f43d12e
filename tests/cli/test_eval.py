"""`cockpit eval`: a real engine, a real worker, a tiny model; and predictions without either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.protocol.home import Home
from tests.cli.conftest import Cockpit, command, environment
from tests.conftest import find_engine
from tests.prep.service import LoopbackService, completion
from tests.training.harness import make_model

FACT = {"subject": "A", "subject_type": "t", "predicate": "born in", "object": "B", "object_type": "t"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def written(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_predictions_are_scored_without_a_model_or_an_engine(cockpit: Cockpit, bare_home: Home, tmp_path: Path) -> None:
    good = written(tmp_path / "good.jsonl", *({"reply": [FACT], "reference": json.dumps([FACT])} for _ in range(9)))
    bad = written(tmp_path / "bad.jsonl", *({"reply": "no", "reference": [FACT]} for _ in range(9)))
    done = cockpit(
        "eval", "--predictions", good, "--task", "triples", "--thresholds", "triples_f1.born_in >= 1", "--json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (
        result["triples_f1"] == result["triples_f1.born_in"] == result["exact_match"] == 1.0
        and result["passed"] is True
    )
    assert len((Path(result["directory"]) / "replies.jsonl").read_text().splitlines()) == 9
    done = cockpit(
        "eval", "--predictions", bad, "--task", "triples", "--thresholds", "json_validity >= 0.5", "--against", good
    )
    assert done.returncode == 1, "a threshold failed"
    assert "FAILED: json_validity is 0, wanted >= 0.5" in done.stdout
    worse = next(line for line in done.stdout.splitlines() if line.startswith("triples_f1 "))
    assert "-1  [-1, -1]" in worse and worse.rstrip().endswith("worse")
    assert find_engine(bare_home) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name either a target to measure"),
        (("last", "--predictions", "x.jsonl"), "name either a target"),
        (("--predictions", "none.jsonl"), "none.jsonl"),
        (("--predictions", "torn.jsonl"), "torn.jsonl:2: not JSON"),
        (("--predictions", "torn.jsonl", "--samples", "3"), "--samples applies to measuring a model"),
        (("--predictions", "torn.jsonl", "--judge", "model"), "--judge model: write it as model=NAME"),
    ],
)
def test_a_wrong_request_is_said_in_words(
    cockpit: Cockpit, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "torn.jsonl").write_text('{"reply": "a"}\n{"reply": \n')
    done = cockpit("eval", *arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr


@pytest.mark.slow
def test_a_model_is_measured_judged_and_compared(cockpit: Cockpit, bare_home: Home, tmp_path: Path, tiny: Path) -> None:
    other = make_model(tmp_path / "other", hidden=32)
    rows = (
        "--data",
        "triples/test.jsonl",
        "--task",
        "triples",
        "--rows",
        "6",
        "--samples",
        "4",
        "--max-new-tokens",
        "5",
    )
    points = json.dumps({"opposition": 2, "rigour": 3, "depth": 4})
    with LoopbackService(lambda *_: completion(points, usage=(50, 5))) as service:
        judge = ("--judge", f"base_url={service.url}", "--judge", "api_key_env=A_KEY", "--judge", "price.input=2")
        done = cockpit("eval", str(tiny), *rows, *judge, "--thresholds", "judge >= 3", "--json", A_KEY="sk-1")
        assert done.returncode == 0, done.stderr
        assert service.keys == {"Bearer sk-1"} and len(service.prompts) == 4
    result = json.loads(done.stdout)
    assert (result["judge"], result["judge_depth"], result["replies"], result["rows"]) == (3.0, 4.0, 4, 6)
    assert result["judge_usage"] == {"prompt_tokens": 200, "reply_tokens": 20, "cost": pytest.approx(0.0004)}
    assert result["perplexity"] > 1 and result["json_validity"] == 0 and result["reply_tokens"] <= 5
    assert "sk-1" not in "".join(path.read_text() for path in Path(result["directory"]).iterdir())
    done = cockpit("eval", str(other), *rows, "--against", str(tiny), "--json")
    assert done.returncode == 0, done.stderr
    (against,) = json.loads(done.stdout)["against"]
    assert against["metrics"]["loss"] == result["loss"] and against["compared_rows"] == 6
    loss = against["differences"]["loss"]
    assert loss["low"] <= loss["difference"] <= loss["high"]
    assert not [
        each
        for each in psutil.process_iter(["cmdline"])
        if "engine.workers.evaluate" in str(each.info["cmdline"]) and str(bare_home.root) in str(each.info["cmdline"])
    ]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_that_is_done(
    cockpit: Cockpit, bare_home: Home, tmp_path: Path, tiny: Path
) -> None:
    out = tmp_path / "kept"
    rows = ("--data", "triples/test.jsonl", "--task", "triples", "--max-new-tokens", "60", "--out", str(out))
    process = subprocess.Popen(
        command("eval", str(tiny), *rows), env=environment(bare_home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    replies = out / "replies.jsonl"
    deadline = time.monotonic() + 60
    while not (replies.exists() and replies.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    worker = next(
        each.info["pid"]
        for each in psutil.process_iter(["pid", "cmdline"])
        if "engine.workers.evaluate" in (each.info["cmdline"] or []) and str(bare_home.root) in each.info["cmdline"]
    )
    os.kill(worker, signal.SIGKILL)
    said = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 2 and "evaluate" in said, said
    first = [json.loads(line) for line in replies.read_text().splitlines() if line.endswith("}")]
    done = cockpit("eval", str(tiny), *rows, "--json", seconds=120)
    assert done.returncode == 0, done.stderr
    kept = {entry["row"]: entry for entry in map(json.loads, replies.read_text().splitlines())}
    assert sorted(kept) == list(range(64))
    for entry in first:
        assert kept[entry["row"]]["seconds"] == entry["seconds"], "it was not generated again"
