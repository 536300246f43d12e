"""Kill things; lose nothing. Real supervisor, real worker processes, real torchrun; the workers are scripted."""

from __future__ import annotations

import os
import resource
import signal
import time

import psutil
import pytest

from engine.protocol import journal, states
from engine.protocol.client import Client
from engine.protocol.messages import Command, Resume, Run, SeriesQuery, Snapshot, Stop
from tests.scripted.bench import Engine, wait_for


def whole_curve(engine: Engine, run: Run) -> list[int]:
    reply = engine.client.request("series", SeriesQuery(run=run.id, names=["train/loss"], points=100_000))
    return reply.series[0].first_step


def test_a_run_outlives_its_supervisor_and_the_next_one_adopts_it(engine: Engine) -> None:
    run = engine.submit(steps=400)
    engine.wait_step(run, 20)
    engine.kill()
    before = len(engine.steps(run))
    wait_for(lambda: len(engine.steps(run)) > before + 20, what="training without a supervisor")
    engine.restart()
    adopted = engine.show(run).run
    assert adopted.state == states.RUNNING and adopted.step > before
    entries = [entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle)]
    assert any(isinstance(entry, journal.Adopted) for entry in entries)
    # Commands reach the adopted worker: it has found the new supervisor by itself.
    assert engine.client.request("pause", Command(run=run.id)).state == states.PAUSED
    assert engine.client.request("continue", Command(run=run.id)).state == states.RUNNING
    assert engine.wait(run, states.COMPLETED).step == 400
    assert engine.steps(run) == list(range(1, 401))
    assert whole_curve(engine, run) == list(range(1, 401))


def test_a_run_that_ended_while_nobody_watched_is_completed(engine: Engine) -> None:
    run = engine.submit(steps=100)
    engine.wait_step(run, 5)
    engine.kill()
    wait_for(lambda: not engine.processes(run), what="the worker's end")
    engine.restart()
    assert engine.wait(run, states.COMPLETED).step == 100
    assert whole_curve(engine, run) == list(range(1, 101))


def test_a_worker_killed_while_nobody_watched_is_lost(engine: Engine) -> None:
    run = engine.submit(steps=100_000)
    engine.wait_step(run, 5)
    engine.kill()
    for process in engine.processes(run):
        process.kill()
    engine.restart()
    lost = engine.wait(run, states.LOST)
    assert "exit status is unknown" in lost.reason


def test_kill_of_the_worker_fails_the_run_and_explains_the_signal(engine: Engine) -> None:
    run = engine.submit(steps=100_000)
    engine.wait_step(run, 5)
    acknowledged = engine.steps(run)
    os.kill(engine.show(run).pids[0], signal.SIGKILL)
    failed = engine.wait(run, states.FAILED)
    assert failed.problem is not None and "SIGKILL" in failed.problem.cause
    assert engine.steps(run)[: len(acknowledged)] == acknowledged
    assert engine.processes(run) == []


def test_a_torn_last_line_is_passed_over_and_overwritten(engine: Engine) -> None:
    run = engine.submit(steps=5000, pace=0.002)
    engine.wait_step(run, 10)
    engine.client.request("stop", Stop(run=run.id))
    engine.wait(run, states.STOPPED)
    events = engine.home.run(run.id).events
    with open(events, "ab") as file:
        file.write(b'{"kind":"metrics","time":1,"att')
    lifecycle = engine.home.run(run.id).lifecycle
    with open(lifecycle, "ab") as file:
        file.write(b'{"kind":"state"')
    engine.kill()
    engine.restart()
    assert engine.show(run).run.state == states.STOPPED
    step = engine.show(run).run.step
    engine.client.request("resume", Resume(run=run.id, changes={"training.max_steps": step + 5}))
    engine.wait(run, states.COMPLETED)
    assert engine.steps(run) == list(range(1, step + 6))
    assert all(not isinstance(entry, journal.Unknown) for entry, _ in journal.read(events))
    assert all(not isinstance(entry, journal.Unknown) for entry, _ in journal.read(lifecycle))


def test_a_client_sees_the_whole_curve_after_the_supervisor_was_killed(engine: Engine) -> None:
    run = engine.submit(steps=800)
    stream = engine.client.follow()
    assert isinstance(next(stream), Snapshot)
    engine.wait_step(run, 5)
    engine.kill()
    engine.restart()
    again = next(body for body in stream if isinstance(body, Snapshot))
    assert again.runs[0].state == states.RUNNING
    engine.wait(run, states.COMPLETED)
    assert whole_curve(engine, run) == list(range(1, 801))


def test_a_hang_up_of_the_clients_terminal_reaches_neither_engine_nor_job(engine: Engine) -> None:
    run = engine.submit(steps=100_000)
    engine.wait_step(run, 5)
    # Engine and job have sessions of their own: the terminal's hang-up goes to neither. Send it outright, to be sure of
    # the engine.
    os.kill(engine.process.pid, signal.SIGHUP)
    session = os.getsid(os.getpid())
    assert os.getsid(engine.process.pid) != session
    assert all(os.getsid(process.pid) != session for process in engine.processes(run))
    step = engine.show(run).run.step
    engine.wait_step(run, step + 10)


def test_losing_the_registry_loses_nothing(engine: Engine) -> None:
    run = engine.submit(steps=200, pace=0.001)
    engine.wait(run, states.COMPLETED)
    engine.kill()
    for file in engine.home.engine.glob("registry.db*"):
        file.unlink()
    engine.restart()
    again = engine.show(run)
    assert (again.run.state, again.run.step, again.run.max_steps) == (states.COMPLETED, 200, 200)
    assert whole_curve(engine, run) == list(range(1, 201))


def test_a_full_disk_delays_the_engines_journal_and_loses_nothing(engine: Engine) -> None:
    """No file of the engine may grow any more, as on a full disk; its worker is not touched."""
    run = engine.submit(steps=150)
    engine.wait_step(run, 5)
    process = psutil.Process(engine.process.pid)
    process.rlimit(psutil.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    assert engine.wait(run, states.COMPLETED).step == 150
    assert engine.states(run)[-1] == states.RUNNING, "the journal cannot have been written"
    process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_for(lambda: engine.states(run)[-1] == states.COMPLETED, what="the waiting entry in the journal")
    assert engine.process.poll() is None
    assert engine.steps(run) == list(range(1, 151))
    engine.client.request("reindex")
    assert whole_curve(engine, run) == list(range(1, 151))


def test_two_starts_at_once_make_one_engine(engine: Engine) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-P", "-m", "engine.supervisor", "--home", str(engine.home.root)]
    assert subprocess.run(command, timeout=20, check=False).returncode == 3
    with Client(engine.home) as other:
        assert other.request("hello").pid == engine.process.pid


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "agent"])
def test_kill_of_one_rank_or_of_the_agent_ends_all_and_fails_the_run(engine: Engine, victim: str) -> None:
    run = engine.submit("launch.processes=2", steps=100_000)
    engine.wait(run, states.RUNNING)
    ranks = wait_for(lambda: len(found := engine.show(run).ranks) == 2 and found, 60, "two ranks")
    pids = engine.show(run).pids
    agent = next(pid for pid in pids if pid not in {rank.pid for rank in ranks})
    began = time.monotonic()
    os.kill(ranks[1].pid if victim == "rank" else agent, signal.SIGKILL)
    failed = engine.wait(run, states.FAILED, seconds=15)
    assert time.monotonic() - began < 10
    assert failed.problem is not None
    if victim == "rank":
        assert failed.problem.title.startswith("Rank 1")
    assert "SIGKILL" in failed.problem.cause
    assert engine.processes(run) == []
