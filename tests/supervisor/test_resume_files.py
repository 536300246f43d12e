"""Resuming when files that a run was made from are gone or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.protocol import states
from engine.protocol.messages import ProblemError, Resume, Run, Stop
from tests.scripted.bench import Engine


def _stopped(engine: Engine, source: Path) -> Run:
    source.write_text(json.dumps({"instruction": "a", "input": "", "output": "b"}) + "\n")
    rows = f"[{{source: {source}}}]"
    changes = (f"data.train={rows}", f"data.validation={rows}", "evaluation.task=null")
    run = engine.submit(*changes, steps=5000, pace=0.002)
    engine.wait_step(run, 5)
    engine.client.request("stop", Stop(run=run.id))
    return engine.wait(run, states.STOPPED)


def test_a_run_goes_on_without_the_files_that_its_rows_were_prepared_from(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    run = _stopped(engine, source)
    source.unlink()
    engine.kill()
    engine.restart()  # which knows no profile by heart
    with pytest.raises(ProblemError) as raised:
        engine.client.request("resume", Resume(run=run.id, changes={"data.max_length": 64}))
    assert raised.value.problem.code == "profile.invalid" and str(source) in raised.value.problem.cause
    resumed = engine.client.request("resume", Resume(run=run.id, changes={"training.max_steps": run.step + 3}))
    assert engine.wait(resumed, states.COMPLETED).step == run.step + 3
    assert engine.states(run).count("preparing") == 1, "its rows are still prepared"
    engine.client.request("resume", Resume(run=run.id))
    assert engine.wait(run, states.COMPLETED).attempt == 3


def test_resuming_a_run_with_a_damaged_profile_is_refused_in_words(engine: Engine, tmp_path: Path) -> None:
    run = _stopped(engine, tmp_path / "rows.jsonl")
    profile = engine.home.run(run.id).profile
    engine.kill()
    for content in (b"\xff\xfe", b"[" * 100_000, b"model: {base: 3}\n", b"training: {learning_rate: .nan}\n"):
        profile.write_bytes(content)
        engine.restart()
        with pytest.raises(ProblemError) as raised:
            engine.client.request("resume", Resume(run=run.id))
        assert raised.value.problem.code == "profile.outdated", raised.value.problem
        assert engine.show(run).run.state == states.STOPPED
        engine.kill()
    engine.restart()
