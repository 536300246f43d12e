"""Real runs that cannot learn, and one that can: the panel says what to change first."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from engine.protocol.home import Home
from engine.protocol.journal import Start
from engine.training.repeated_rows import count_duplicates
from tests.training.in_process import entries, train


def ask_why(home: Home, run: str) -> tuple[int, dict[str, Any]]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["why", run, "--json", "--home", str(home.root)])
    return status, json.loads(said.getvalue())


SETTINGS = ("training.max_steps=24", "training.micro_batch=4", "training.warmup=0", "training.scheduler=constant")


@pytest.mark.parametrize(
    ("rate", "first"), [("1.0e-30", "learning.rate_zero"), ("30.0", "learning.gradient_exploding"), ("1.0e-2", "")]
)
def test_a_real_run_is_told_what_is_wrong_with_its_rate(
    rate: str, first: str, prepared: dict[str, Any], tmp_path: Path
) -> None:
    home = Home(tmp_path)
    run = train(home, "run", prepared, *SETTINGS, f"training.learning_rate={rate}")
    (run.path / "job.json").write_text('{"created": 1.0}')
    status, said = ask_why(home, "run")
    codes = [each["code"] for each in said["findings"] if each["code"].startswith("learning.")]
    assert codes[:1] == ([first] if first else []), said
    if first:
        assert status == 1 and "training.learning_rate" in said["findings"][0]["hint"]
    assert said["step"] == 24 and sum(said["split"].values()) == pytest.approx(1)
    start = entries(run, Start)[0]
    assert start.facts["tokens"] >= start.trained_tokens > 0 and start.facts["duplicates"] == 0.0


def test_repeated_rows_are_counted_in_joined_rows_too() -> None:
    rows = [{"input_ids": [1, 2, index]} for index in range(30)]
    assert count_duplicates(rows) == 0.0
    assert count_duplicates([*rows, *rows[:10]]) == pytest.approx(10 / 40)
    joined = [{"input_ids": [7, 7, 7, index, 7, 7], "seq_lengths": [2, 2, 2]} for index in range(10)]
    assert count_duplicates(joined) == pytest.approx(20 / 30)
    assert count_duplicates([{"prompt": "a", "chosen": [1]}] * 25) == pytest.approx(24 / 25)
    assert count_duplicates(rows[:3] * 2) == 0.0  # too few to say
    assert count_duplicates(rows * 100, seconds=0.0) == 0.0  # no time to look further than the first
