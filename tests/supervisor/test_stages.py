"""Runs with stages after training, under a real supervisor with scripted workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config import stage_plan
from engine.config.profile import find, load
from engine.protocol import journal, stages, states
from engine.protocol.messages import Command, ProblemError, Resume, Run, Stop, Submit
from tests.scripted.bench import Engine, wait_for

ALL = ("data.test=[{source: triples/test.jsonl}]", "export.kind=merged")


def launched(engine: Engine, run: Run) -> list[tuple[int, str]]:
    """(attempt, stage) of every worker that was started."""
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    return [(entry.attempt, entry.stage) for entry in entries if isinstance(entry, journal.Launched)]


def test_the_stages_of_a_profile_and_the_first_one_that_a_change_affects() -> None:
    asked = lambda *changes: stage_plan.list_stages(load(find("triples-qlora"), changes))  # noqa: E731
    assert asked() == ["check", "prepare", "train"]
    assert asked(*ALL) == ["check", "prepare", "train", "evaluate", "export"]
    assert asked("data.split={test: 0.1}", "data.expand={samples: 3}")[1:] == ["expand", "prepare", "train", "evaluate"]
    assert stage_plan.find_first_touched(["export.dtype", "name"]) == "export"
    assert stage_plan.find_first_touched(["export.dtype", "evaluation.thresholds"]) == "evaluate"
    assert stage_plan.find_first_touched(["data.test.0.max_rows", "generation.max_new_tokens"]) == "evaluate"
    for name in ("data.train", "data.testing", "training.epochs", "model.base"):
        assert stage_plan.find_first_touched([name, "export.kind"]) == "train"


def test_a_run_stays_running_until_its_last_stage_is_done(engine: Engine) -> None:
    run = engine.submit(*ALL, steps=3, pace=0.001)
    done = engine.wait(run, states.COMPLETED)
    assert engine.states(run) == ["queued", "preparing", "running", "completed"]
    assert launched(engine, run) == [(1, "prepare"), (1, "train"), (1, "evaluate"), (1, "export")]
    assert (done.stage, done.stages) == ("export", ["check", "prepare", "train", "evaluate", "export"])
    assert {path.name for path in Path(done.directory).glob("*ed.json")} == set(stages.RESULTS.values())


def test_a_stage_that_dies_fails_the_run_and_a_resume_goes_on_there(engine: Engine) -> None:
    run = engine.submit(*ALL, "generation.seed=5", steps=3, pace=0.001)
    failed = engine.wait(run, states.FAILED)
    assert failed.stage == "evaluate" and failed.problem and "status 7" in failed.problem.title
    engine.client.request("resume", Resume(run=run.id))
    engine.wait(run, states.COMPLETED)
    assert launched(engine, run)[3:] == [(2, "evaluate"), (2, "export")]
    engine.client.request("resume", Resume(run=run.id, changes={"export.dtype": "float32"}))
    wait_for(lambda: engine.show(run).run.attempt == 3 and engine.show(run).run.state == states.COMPLETED)
    assert launched(engine, run)[5:] == [(3, "prepare"), (3, "export")]
    engine.client.request("resume", Resume(run=run.id, changes={"training.max_steps": 5}))
    wait_for(lambda: engine.show(run).run.attempt == 4 and engine.show(run).run.state == states.COMPLETED)
    assert launched(engine, run)[7:] == [(4, "prepare"), (4, "train"), (4, "evaluate"), (4, "export")]
    assert json.loads(engine.home.run(run.id).result("export").read_text()) == {"attempt": 4}


def test_stopping_after_training_ends_the_stage_at_once_and_it_takes_no_commands(engine: Engine) -> None:
    run = engine.submit(*ALL, "generation.seed=6", steps=3, pace=0.001)
    wait_for(lambda: engine.show(run).run.stage == "evaluate", what="evaluate")
    with pytest.raises(ProblemError, match="has finished training"):
        engine.client.request("pause", Command(run=run.id))
    engine.client.request("stop", Stop(run=run.id))
    engine.wait(run, states.STOPPED, seconds=5)
    assert engine.processes(run) == []
    engine.client.request("resume", Resume(run=run.id))
    wait_for(lambda: engine.show(run).run.stage == "evaluate" and engine.show(run).run.state == states.RUNNING)
    assert launched(engine, run)[2:] == [(1, "evaluate"), (2, "evaluate")]


def test_a_new_engine_adopts_a_run_in_a_late_stage(engine: Engine) -> None:
    run = engine.submit(*ALL, "generation.seed=6", steps=3, pace=0.001)
    wait_for(lambda: engine.show(run).run.stage == "evaluate", what="evaluate")
    engine.kill()
    engine.restart()
    assert engine.show(run).run.stage == "evaluate"
    assert engine.wait(run, states.COMPLETED, seconds=40).stage == "export"
    assert launched(engine, run) == [(1, "prepare"), (1, "train"), (1, "evaluate"), (1, "export")]


def test_an_export_into_a_folder_that_is_not_empty_is_refused_before_anything_is_done(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ProblemError, match=r"export\.output is not empty"):
        engine.submit(*ALL, f"export.output={tmp_path / 'out'}")
    assert list(engine.home.runs.iterdir()) == []


def begin(engine: Engine, first: str, *changes: str) -> Run:
    profile = load(find("triples-qlora"), ("training.max_steps=3", "training.learning_rate=0.001", *ALL, *changes))
    message = Submit(profile=profile.to_yaml(), directory="/", source="mine.yaml", first=first)
    return engine.client.request("submit", message)


def test_a_run_can_start_at_a_later_stage(engine: Engine) -> None:
    with pytest.raises(ProblemError, match="No run can start at export"):
        begin(engine, "export")
    first = begin(engine, "")
    engine.wait(first, states.COMPLETED)
    again = begin(engine, "evaluate", "evaluation.thresholds=['loss < 3']")
    assert (again.id, again.attempt) == (first.id, 2)
    engine.wait(again, states.COMPLETED)
    assert launched(engine, first)[4:] == [(2, "prepare"), (2, "evaluate"), (2, "export")]
    with pytest.raises(ProblemError, match=r"settings of an earlier stage have changed: training\.epochs"):
        begin(engine, "evaluate", "training.epochs=2")
    with pytest.raises(ProblemError, match=r"changed since: evaluation\.thresholds"):
        begin(engine, "export")
    other = begin(engine, "train", "training.epochs=2")
    assert other.id != first.id
    engine.wait(other, states.COMPLETED)
    assert launched(engine, other) == [(1, "train"), (1, "evaluate"), (1, "export")]
    with pytest.raises(ProblemError, match=r"changed since: data\.max_length"):
        begin(engine, "train", "data.max_length=99")
