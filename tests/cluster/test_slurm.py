"""Runs that go through Slurm: a real slurmctld and slurmd, a real engine, and workers that only the files reach."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol import journal
from engine.protocol.messages import Command, Continue, Run, RunRef, Set, Stop
from tests.cluster.slurm import Cluster, find_missing
from tests.scripted.bench import Engine, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "-")]
VIA = ("launch.via=slurm", "evaluation.task=null")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.fixture
def through(cluster: Cluster, bare_home, monkeypatch) -> Iterator[Engine]:
    """An engine of scripted workers that submits to the cluster."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    engine = Engine(bare_home)
    yield engine
    cluster.run("scancel", "--user=root", "--signal=KILL", "--full")
    cluster.run("scancel", "--user=root")
    engine.close()


def find_job(engine: Engine, run: Run) -> str:
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    return next((entry.slurm for entry in entries if isinstance(entry, journal.Launched) and entry.slurm), "")


def reasons(engine: Engine, run: Run) -> list[tuple[str, str]]:
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    return [(entry.state, entry.code) for entry in entries if isinstance(entry, journal.State)]


def test_a_run_is_steered_by_files_and_shown_live(through: Engine, cluster: Cluster) -> None:
    engine = through
    run = engine.submit(*VIA, steps=100_000, pace=0.02)
    engine.wait_step(run, 3)
    assert find_job(engine, run) and engine.show(run).run.state == "running"
    script = engine.home.run(run.id).path / "train-1.sbatch"
    assert "srun" in script.read_text()
    wait_for(lambda: engine.show(run).ranks and engine.show(run).ranks[0].host, what="a heartbeat")
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"
    assert engine.client.request("continue", Continue(run=run.id)).state == "running"
    saved = engine.client.request("save", Command(run=run.id)).step
    assert saved in [found.step for found in engine.show(run).checkpoints]
    engine.client.request("set", Set(run=run.id, changes={"training.max_steps": 90_000}))
    engine.kill()  # the job goes on, and the next engine follows it
    engine.restart()
    before = engine.show(run).run.step
    engine.wait_step(run, before + 3)
    assert engine.client.request("stop", Stop(run=run.id)).step > before
    assert engine.wait(run, "stopped").attempt == 1
    wait_for(lambda: not cluster.run("squeue", "-h"), what="the job's end")
