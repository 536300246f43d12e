"""Expansion up to a limit, killed and gone on with: no request twice, nothing more than was allowed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.llm_api import retries
from engine.options.data import PriceOptions
from tests.prep.conftest import write
from tests.prep.expanding import BUNDLED, options, run
from tests.prep.service import (
    LoopbackService,
    completion,
    invented,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_token_limit_is_never_exceeded(tmp_path: Path, concurrency: int) -> None:
    def behave(_: int, body: dict[str, Any]) -> Any:
        """As dear as can be: every token that was allowed."""
        prompt = body["messages"][0]["content"]
        return completion(json.dumps(invented(prompt, 5)), usage=(len(prompt.encode()), body["max_tokens"]))

    with LoopbackService(behave) as service:
        result = run(
            options(service, samples=500, token_limit=20_000, max_tokens=500, concurrency=concurrency), tmp_path
        )
    assert 15_000 < result["prompt_tokens"] + result["reply_tokens"] <= 20_000
    assert result["stopped"].startswith("expand.token_limit") and 0 < result["rows"] < 500
    assert service.most_at_once <= concurrency


def test_where_a_limit_stops_does_not_depend_on_timing(tmp_path: Path) -> None:
    written = []
    for concurrency in (1, 6):
        with LoopbackService(pause=0.004 * concurrency) as service:
            chosen = options(service, samples=500, token_limit=7000, max_tokens=900, concurrency=concurrency)
            run(chosen, tmp_path / str(concurrency))
        written.append((tmp_path / str(concurrency) / "rows.jsonl").read_bytes())
    assert written[0] == written[1] != b""


def test_the_cost_limit_counts_what_the_service_says(tmp_path: Path) -> None:
    price = PriceOptions(input=1.0, output=2.0)
    with LoopbackService() as service:
        result = run(options(service, samples=500, cost_limit=0.012, price=price), tmp_path)
    assert result["cost"] == pytest.approx(result["prompt_tokens"] * 1e-6 + result["reply_tokens"] * 2e-6)
    assert result["cost"] <= 0.012 and result["stopped"].startswith("expand.cost_limit")
    with pytest.raises(ValueError, match=r"expand\.price"):
        run(options(service, cost_limit=1.0), tmp_path / "unpriced")


@pytest.mark.slow
def test_results_do_not_depend_on_timing(tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Any:
        time.sleep(0.02 * (number % 3))
        items = invented(body["messages"][0]["content"], 5)
        return completion(json.dumps(items[: int(items[0]["text"][0], 16) % 6]))

    written = []
    for concurrency in (1, 7):
        with LoopbackService(behave) as service:
            out = tmp_path / str(concurrency)
            result = run(options(service, samples=40, concurrency=concurrency), out)
            assert result["requests"] == len(service.prompts), "no request more than is needed"
        written.append((out / "rows.jsonl").read_bytes())
    assert written[0] == written[1]


# ── going on ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_samples_go_on_from_what_is_there(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(options(service, samples=7), tmp_path)
        few = (tmp_path / "rows.jsonl").read_bytes()
        run(options(service, samples=20), tmp_path)
        assert len(service.prompts) == len(set(service.prompts)) == 4
    assert (tmp_path / "rows.jsonl").read_bytes().startswith(few)


def test_other_settings_want_another_folder(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(options(service), tmp_path)
        with pytest.raises(ValueError, match="other model, temperature"):
            run(options(service, model="another", temperature=0.5), tmp_path)
        with pytest.raises(ValueError, match="other seeds"):
            run(options(service), tmp_path, "triples/dev.jsonl")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(options(service, samples=60, concurrency=3), tmp_path / "whole")
    with LoopbackService(pause=0.15) as service:
        out = tmp_path / "killed"
        command = [sys.executable, "-m", "engine.workers.data_tool", "data", "expand"]
        settings = (f"base_url={service.url}", "samples=60", "concurrency=3")
        given = {
            "file": BUNDLED,
            "format": "auto",
            "out": str(out),
            "dry_run": False,
            "overrides": [f"expand.{each}" for each in settings],
        }
        command += [json.dumps(given), "--json", "--home", str(tmp_path / "home")]
        kills = 0
        for answers in (2, 5):
            child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
            while child.poll() is None and len(service.prompts) < answers + 3 * kills:
                time.sleep(0.01)
            time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        assert kills == 2 and not (out / "rows.jsonl").exists()
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True)
        assert len(service.prompts) <= 12 + 3 * kills, "only what was on its way is asked again"
        assert len(set(service.prompts)) == 12
    assert json.loads(done.stdout)["rows"] == 60
    for name in ("rows.jsonl", "made.jsonl", "answers.jsonl", "rejects.jsonl"):
        here, there = ((folder / name).read_text() for folder in (out, tmp_path / "whole"))
        assert here.replace(str(out), "") == there.replace(str(tmp_path / "whole"), "")
    assert {path.name for path in out.iterdir()} == {
        "requests.jsonl",
        "answers.jsonl",
        "made.jsonl",
        "decisions.jsonl",
        "rows.jsonl",
        "rejects.jsonl",
        "report.json",
    }


def test_the_seeds_are_never_overwritten(tmp_path: Path) -> None:
    seeds = write(tmp_path / "rows.jsonl", {"prompt": "Hello?", "completion": "Hello."})
    with LoopbackService() as service, pytest.raises(ValueError, match="name another folder"):
        run(options(service), tmp_path, seeds)
    assert list(tmp_path.iterdir()) == [seeds]


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    from engine.llm_api.journal import Journal

    journal = Journal(tmp_path / "requests.jsonl", {})
    with LoopbackService() as service, pytest.raises(ValueError, match="another process"):
        run(options(service), tmp_path)
    journal.close()
