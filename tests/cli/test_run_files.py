from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.verbs.run_files import find_run, latest_values, read_metrics, read_state
from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import ProblemError


def made(home: Home, run_id: str, created: float) -> RunDirectory:
    run = home.run(run_id)
    run.path.mkdir(parents=True)
    (run.path / "job.json").write_text(json.dumps({"created": created}))
    return run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_run_is_found_by_id_prefix_and_last(home: Home) -> None:
    made(home, "demo-1", 3.0)
    made(home, "demo-12", 1.0)
    made(home, "other", 2.0)
    assert find_run(home, "last").id == "demo-1"
    assert find_run(home, "demo-1").id == "demo-1", "an id is not ambiguous, though another begins with it"
    assert find_run(home, "o").id == "other"
    with pytest.raises(ProblemError, match="demo-1, demo-12"):
        find_run(home, "demo")
    with pytest.raises(ProblemError, match="no run's id starts"):
        find_run(home, "x")


def test_half_made_and_half_deleted_runs_are_not_seen(home: Home) -> None:
    (home.runs / "no-job").mkdir(parents=True)
    made(home, ".deleted-demo", 9.0)
    with pytest.raises(ProblemError, match="no runs yet"):
        find_run(home, "last")


def test_the_later_attempt_supersedes_step_by_step(home: Home) -> None:
    run = made(home, "r", 1.0)
    writer = journal.Writer(run.events)
    for attempt, step, loss in ((1, 1, 4.0), (1, 2, 3.0), (1, 3, None), (2, 2, 2.5), (2, 3, 2.0)):
        writer.write(journal.Metrics(attempt=attempt, step=step, values={"train/loss": loss, "train/grad_norm": 1.0}))
    writer.write(journal.Evaluation(attempt=2, step=3, values={"eval/loss": 1.5}))
    writer.close()
    with open(run.events, "ab") as file:
        file.write(b'{"kind":"metrics","attempt":2,"step":4,"val')

    losses = latest_values(read_metrics(run, ["train/loss"]))
    assert [(point["step"], point["value"], point["attempt"]) for point in losses] == [
        (1, 4.0, 1),
        (2, 2.5, 2),
        (3, 2.0, 2),
    ]
    assert len(list(read_metrics(run, ["train/loss"]))) == 5
    assert {point["name"] for point in read_metrics(run, [])} == {"train/loss", "train/grad_norm", "eval/loss"}


def test_the_state_is_the_newest_in_the_lifecycle(home: Home) -> None:
    run = made(home, "r", 1.0)
    assert read_state(run) == "queued"
    writer = journal.Writer(run.lifecycle)
    for state in ("queued", "running", "failed"):
        writer.write(journal.State(attempt=1, state=state))
    assert read_state(run) == "failed"
