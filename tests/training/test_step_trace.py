"""A live run records a trace of some of its steps, and goes on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.training.loop import TrainingLoop
from tests.training.in_process import series, train


def test_a_trace_has_the_steps_that_were_asked_for(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Any] = []
    original: Callable[..., None] = TrainingLoop.end_step

    def ask(loop: TrainingLoop) -> None:
        original(loop)
        if loop.step in (1, 2):  # the second comes while the first is being recorded
            refused.append(loop.control._execute("trace", {"steps": 2}))
        if loop.step == 4:  # more than there are left
            refused.append(loop.control._execute("trace", {"steps": 100}))
            refused.append(loop.trace.start(0))

    settings = ("training.max_steps=6", "training.micro_batch=2")
    plain = train(Home(tmp_path), "plain", prepared, *settings)
    monkeypatch.setattr(TrainingLoop, "end_step", ask)
    run = train(Home(tmp_path), "traced", prepared, *settings)
    assert [each and each.code for each in refused] == [None, "request.invalid", None, "request.invalid"]
    assert series(run, "train/loss") == series(plain, "train/loss")
    for step in (1, 4):
        table = json.loads((run.traces / f"step-{step:08d}.json").read_bytes())
        assert (table["step"], table["steps"]) == (step, 2)
        operations = {each["name"]: each for each in table["operations"]}
        assert operations["aten::mm"]["calls"] > 20 and 0 < sum(each["share"] for each in operations.values()) <= 1.001
        trace = json.loads((run.traces / f"step-{step:08d}.trace.json").read_bytes())
        assert len(trace["traceEvents"]) > 100
    assert len(list(run.traces.iterdir())) == 4
