"""A live run records a trace of some of its steps, and goes on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.protocol.home import Home, RunDirectory
from engine.training.loop import TrainingLoop
from engine.training.step_trace import StepTrace
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


def test_a_trace_ends_with_the_loop_and_replaces_that_of_an_earlier_attempt(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., None] = TrainingLoop.end_step
    found: list[bool] = []

    def ask(loop: TrainingLoop) -> None:
        loop.control.stopping = loop.step == 2
        original(loop)
        if loop.step == 2:
            old = loop.job.run.traces / "step-00000002.json"
            old.parent.mkdir()
            old.write_text("{}")
            assert loop.control._execute("trace", {"steps": 50}) is None
            found.append(old.exists())

    monkeypatch.setattr(TrainingLoop, "end_step", ask)
    run = train(Home(tmp_path), "stopped", prepared, "training.max_steps=6", "training.micro_batch=2")
    table = json.loads((run.traces / "step-00000002.json").read_bytes())
    assert found == [False] and (table["step"], table["steps"]) == (2, 1) and table["operations"]
    assert not torch.autograd._profiler_enabled()


def test_whoever_waits_for_a_trace_is_told_that_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    reporter = SimpleNamespace(warn=lambda **warning: warned.append(warning["code"]))
    ranks, job = SimpleNamespace(first=True), SimpleNamespace(run=RunDirectory(tmp_path))
    loop = SimpleNamespace(step=1, max_steps=9, ranks=ranks, job=job, reporter=reporter)
    trace = StepTrace(loop)  # type: ignore[arg-type]
    assert trace.start(1) is None

    def fill(path: str) -> None:
        Path(path).write_text("half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(trace._profiler, "export_chrome_trace", fill)
    loop.step = 2
    trace.end_step()
    assert json.loads((tmp_path / "traces" / "step-00000001.json").read_bytes())["failed"] == "no space left on device"
    assert warned == ["file.unwritable"] and len(list((tmp_path / "traces").iterdir())) == 1
