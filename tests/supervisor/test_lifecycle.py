"""A run's life under a real supervisor, with scripted workers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from engine.protocol import states
from engine.protocol.home import Home
from engine.protocol.messages import (
    Command,
    LogQuery,
    Points,
    ProblemError,
    Reorder,
    Resume,
    RunChanged,
    RunRef,
    SeriesQuery,
    Set,
    Shutdown,
    Snapshot,
    Stop,
    Submit,
)
from tests.scripted.bench import Engine


@pytest.fixture
def cold_engine(bare_home: Home) -> Iterator[Engine]:
    """Supervisor and workers as new interpreters, which other tests fork (see `tests.warm_engine`)."""
    engine = Engine(bare_home, cold=True)
    yield engine
    engine.close()


def test_a_run_goes_from_queue_to_completed_and_its_curve_is_kept(cold_engine: Engine) -> None:
    engine = cold_engine
    run = engine.submit(steps=150, pace=0.0005)
    assert run.state == states.QUEUED
    done = engine.wait(run, states.COMPLETED)
    assert engine.states(run) == ["queued", "preparing", "running", "completed"]
    assert (done.step, done.max_steps, done.global_batch) == (150, 150, 8)
    detail = engine.show(run)
    assert [checkpoint.step for checkpoint in detail.checkpoints] == [150]
    assert detail.checkpoints[0].metrics == {"eval/loss": 1.0}
    reply = engine.client.request("series", SeriesQuery(run=run.id, names=["train/loss"], points=7))
    series = reply.series[0]
    assert len(series.low) <= 7 and series.total == 150
    assert (series.first_step[0], series.last_step[-1], series.high[0]) == (1, 150, 2.0)
    assert series.last[-1] == pytest.approx(2.0 / 150)


def test_following_shows_every_state_and_every_point_once(engine: Engine) -> None:
    seen: list[str] = []
    points: list[int] = []
    stream = engine.client.follow()
    assert isinstance(next(stream), Snapshot)
    run = engine.submit(steps=60, pace=0.005)
    for body in stream:
        if isinstance(body, Points):
            points += [step for step, _ in body.values["train/loss"]]
        if isinstance(body, RunChanged) and (not seen or seen[-1] != body.run.state):
            seen.append(body.run.state)
        if seen and seen[-1] == states.COMPLETED:
            break
    assert points == list(range(1, 61))
    assert seen[-2:] == ["running", "completed"]
    assert run.id


def test_pause_continue_set_save_and_stop_are_taken_at_a_step(engine: Engine) -> None:
    run = engine.submit(steps=5000, pace=0.005)
    engine.wait_step(run, 5)
    paused = engine.client.request("pause", Command(run=run.id))
    assert paused.state == states.PAUSED and paused.step >= 5
    assert engine.show(run).run.reason == "asked"
    time.sleep(0.3)
    assert engine.show(run).run.step == paused.step
    assert engine.client.request("save", Command(run=run.id)).step == paused.step
    assert engine.client.request("continue", Command(run=run.id)).state == states.RUNNING
    taken = engine.client.request("set", Set(run=run.id, changes={"training.max_steps": 4000}))
    ledger = engine.show(run).ledger
    assert [(line.name, line.new) for line in ledger][-1] == ("training.max_steps", 4000)
    assert ledger[-1].step == taken.step
    stopped = engine.client.request("stop", Stop(run=run.id))
    assert stopped.step >= taken.step
    assert engine.wait(run, states.STOPPED).step == stopped.step
    assert engine.states(run) == ["queued", "preparing", "running", "paused", "running", "stopping", "stopped"]


@pytest.mark.parametrize("indexed", [True, False])
def test_what_was_set_outlives_the_engine_and_its_index(indexed: bool, engine: Engine) -> None:
    run = engine.submit(steps=2000, pace=0.005)
    engine.wait_step(run, 5)
    engine.client.request("set", Set(run=run.id, changes={"training.max_steps": 60}))
    engine.wait(run, states.COMPLETED)
    engine.kill()
    if not indexed:
        for path in engine.home.engine.glob("registry*"):
            path.unlink()
    engine.restart()
    # The profile, which still says 2,000, is read some time after the start.
    for _ in range(20):
        found = engine.show(run).run
        assert (found.state, found.step, found.max_steps) == (states.COMPLETED, 60, 60)
        time.sleep(0.05)


def test_resume_starts_a_second_attempt_from_the_checkpoint(engine: Engine) -> None:
    run = engine.submit(steps=5000, pace=0.002)
    engine.wait_step(run, 20)
    stopped = engine.client.request("stop", Stop(run=run.id)).step
    engine.wait(run, states.STOPPED)
    engine.client.request("resume", Resume(run=run.id, changes={"training.max_steps": stopped + 50}))
    done = engine.wait(run, states.COMPLETED)
    assert (done.attempt, done.step) == (2, stopped + 50)
    assert engine.steps(run) == list(range(1, stopped + 51))
    with pytest.raises(ProblemError, match="no checkpoint at step 3"):
        engine.client.request("resume", Resume(run=run.id, step=3))


def test_stop_now_ends_a_worker_that_does_not_listen(engine: Engine) -> None:
    run = engine.submit("generation.seed=2")  # a prepare worker asleep for ten seconds
    engine.wait(run, states.PREPARING)
    began = time.monotonic()
    engine.client.request("stop", Stop(run=run.id, now=True))
    engine.wait(run, states.STOPPED)
    assert time.monotonic() - began < 4.0
    assert engine.processes(run) == []


def test_the_queue_runs_one_at_a_time_in_the_users_order(engine: Engine) -> None:
    first, second, third = engine.submit(steps=300), engine.submit(steps=2), engine.submit(steps=2)
    engine.wait(first, states.RUNNING)
    assert [engine.show(run).run.position for run in (second, third)] == [1, 2]
    assert engine.client.request("reorder", Reorder(run=third.id, position=1)).position == 1
    assert engine.client.request("stop", Stop(run=second.id)).state == states.STOPPED
    engine.client.request("stop", Stop(run=first.id))
    engine.wait(third, states.COMPLETED)
    assert engine.states(second) == ["queued", "stopping", "stopped"]


@pytest.mark.parametrize(
    ("script", "title", "detail"),
    [
        (1, "No row is usable", ""),
        (3, "The worker ended with exit status 1", "RuntimeError: the data is cursed"),
        (4, "The worker ended with exit status 7", ""),
    ],
)
def test_a_failure_says_why(engine: Engine, script: int, title: str, detail: str) -> None:
    run = engine.submit(f"generation.seed={script}", steps=10)
    failed = engine.wait(run, states.FAILED)
    assert failed.problem is not None
    assert failed.problem.title == title
    assert detail in failed.problem.cause
    assert failed.problem.hint
    log = engine.client.request("log", LogQuery(run=run.id)).text
    assert detail in log


def test_restarts_happen_as_often_as_the_profile_says(engine: Engine) -> None:
    run = engine.submit("generation.seed=4", "launch.restarts=1", steps=10)
    failed = engine.wait(run, states.FAILED)
    while failed.attempt < 2:
        failed = engine.wait(run, states.FAILED)
    assert engine.states(run).count("failed") == 2
    assert failed.attempt == 2


def test_an_attempt_that_ran_out_of_memory_is_repeated_and_not_counted(engine: Engine) -> None:
    run = engine.submit("generation.seed=50", steps=10)
    completed = engine.wait(run, states.COMPLETED)
    assert completed.attempt == 3
    assert engine.states(run).count("failed") == 2


def test_bad_requests_leave_nothing_behind(engine: Engine) -> None:
    with pytest.raises(ProblemError, match=r"training\.learning_rat: unknown key, did you mean learning_rate"):
        engine.client.request("submit", Submit(profile="training: {learning_rat: 1}\ndata: {train: [{source: x}]}"))
    with pytest.raises(ProblemError, match="asks for devices"):
        engine.submit("launch.devices=[0]")
    with pytest.raises(ProblemError, match=r"Too little disk\n.* limits\.disk_free_gb is 1e\+09"):
        engine.submit("limits.disk_free_gb=1000000000")
    assert list(engine.home.runs.iterdir()) == []
    with pytest.raises(ProblemError, match="There are no runs yet"):
        engine.client.request("show", RunRef(run="last"))


def test_delete_takes_only_what_has_ended(engine: Engine) -> None:
    run = engine.submit(steps=100000)
    engine.wait(run, states.RUNNING)
    with pytest.raises(ProblemError, match="is running"):
        engine.client.request("delete", RunRef(run=run.id))
    with pytest.raises(ProblemError, match="Jobs are running"):
        engine.client.request("shutdown", Shutdown())
    engine.client.request("stop", Stop(run=run.id, now=True))
    engine.wait(run, states.STOPPED)
    engine.client.request("delete", RunRef(run=run.id))
    assert list(engine.home.runs.iterdir()) == []


def test_engine_stop_by_force_ends_the_jobs_first(engine: Engine) -> None:
    run = engine.submit(steps=100000)
    engine.wait(run, states.RUNNING)
    engine.client.request("shutdown", Shutdown(force=True))
    engine.process.wait(10)
    assert engine.states(run)[-1] == "stopped"
    assert engine.processes(run) == []
    assert not engine.home.connection.exists()
