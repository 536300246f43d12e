"""Ranks that share a divided model, killed under a real supervisor and a real torchrun: what they computed is computed
again to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol import journal, states
from engine.protocol.home import Home
from engine.protocol.messages import Command, Resume, Run, Stop, Submit
from engine.training.resume import EXACT
from tests.cluster import long
from tests.scripted.bench import Engine, wait_for
from tests.training.harness import PROFILE, make_model

pytestmark = [pytest.mark.slow, long]


@pytest.fixture
def engine(bare_home: Home) -> Iterator[Engine]:
    engine = Engine(bare_home, "engine.workers", warm=True)
    yield engine
    engine.close()


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """Trains on two ranks until it is ended."""
    text = PROFILE.format(base=make_model(tmp_path / "tiny")).replace("epochs: 1", "max_steps: 100000")
    text = text.replace("rehearsal: true", "rehearsal: false") + "launch: {processes: 2, strategy: fsdp}\n"
    run: Run = engine.client.request("submit", Submit(profile=text, directory="/"))
    wait_for(lambda: engine.show(run).run.step > 3, 120, "the first steps")
    wait_for(lambda: len(engine.show(run).ranks) == 2, 20, "both ranks")
    return run


def read_losses(engine: Engine, run: Run, attempt: int) -> dict[int, float | None]:
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).events))
    return {
        entry.step: entry.values["train/loss"]
        for entry in entries
        if isinstance(entry, journal.Metrics) and entry.attempt == attempt
    }


@pytest.mark.parametrize("victim", ["rank", "agent", "all"])
def test_a_divided_run_whose_processes_are_killed_goes_on_exactly(engine: Engine, run: Run, victim: str) -> None:
    """All of them while no engine is running."""
    saved = engine.client.request("save", Command(run=run.id), 60).step
    wait_for(lambda: engine.show(run).run.step > saved + 3, 60, "steps after the checkpoint")
    shown = engine.show(run)
    ranks = {rank.rank: rank.pid for rank in shown.ranks}
    (agent,) = set(shown.pids) - set(ranks.values())
    if victim == "all":
        engine.kill()
        for process in engine.processes(run):
            process.kill()
        engine.restart()
        engine.wait(run, states.LOST)
    else:
        os.kill(ranks[1] if victim == "rank" else agent, signal.SIGKILL)
        problem = engine.wait(run, states.FAILED, seconds=30).problem
        assert problem is not None and "SIGKILL" in problem.cause
        assert victim == "agent" or problem.title.startswith("Rank 1")
    assert engine.processes(run) == []
    before = read_losses(engine, run, 1)
    engine.client.request("resume", Resume(run=run.id))
    last = max(before)
    again = wait_for(lambda: last in (found := read_losses(engine, run, 2)) and found, 120, "the same steps again")
    starts = [e for e, _ in journal.read(engine.home.run(run.id).events) if isinstance(e, journal.Start)]
    assert [(entry.step, entry.resumed) for entry in starts] == [(0, ""), (saved, EXACT)]
    lost = [step for step in before if step > saved]
    assert len(lost) > 2 and {step: again[step] for step in lost} == {step: before[step] for step in lost}
    engine.client.request("stop", Stop(run=run.id))
    engine.wait(run, states.STOPPED, seconds=60)


def test_a_divided_run_outlives_its_engine_and_the_next_one_steers_it(engine: Engine, run: Run) -> None:
    engine.kill()
    before = len(engine.steps(run))
    wait_for(lambda: len(engine.steps(run)) > before + 5, 60, "training without an engine")
    engine.restart()
    assert engine.show(run).run.state == states.RUNNING
    assert engine.client.request("pause", Command(run=run.id), 60).state == states.PAUSED
    assert engine.client.request("continue", Command(run=run.id), 60).state == states.RUNNING
    engine.client.request("stop", Stop(run=run.id))
    stopped = engine.wait(run, states.STOPPED, seconds=60)
    assert engine.home.run(run.id).checkpoint_steps()[-1] == stopped.step
    assert engine.steps(run) == list(range(1, stopped.step + 1))
    assert engine.processes(run) == []
