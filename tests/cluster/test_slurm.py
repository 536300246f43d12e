"""Runs that go through Slurm: a real slurmctld and slurmd, a real engine, and workers that only the files reach."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.protocol import journal
from engine.protocol.home import host_name
from engine.protocol.messages import (
    Ask,
    Command,
    Continue,
    OpenService,
    ProblemError,
    Run,
    Set,
    Stop,
    Submit,
)
from engine.training.resume import EXACT
from tests.cluster import UnavailableError, long
from tests.cluster.slurm import Cluster, find_missing
from tests.scripted.bench import ROOT, Engine, wait_for
from tests.training.harness import PROFILE, make_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "-")]
VIA = ("launch.via=slurm", "evaluation.task=null")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    except (UnavailableError, OSError) as error:
        pytest.skip(str(error))
    yield cluster
    cluster.close()


@pytest.fixture
def through(cluster: Cluster, bare_home, monkeypatch) -> Iterator[Engine]:
    """An engine of scripted workers that submits to the cluster."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    engine = Engine(bare_home)
    yield engine
    cluster.clear()
    engine.close()


def find_job(engine: Engine, run: Run) -> str:
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    return next((entry.slurm for entry in entries if isinstance(entry, journal.Launched) and entry.slurm), "")


def reasons(engine: Engine, run: Run) -> list[tuple[str, str]]:
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    return [(entry.state, entry.code) for entry in entries if isinstance(entry, journal.State)]


def test_a_run_is_steered_by_files_queued_again_and_cancelled(through: Engine, cluster: Cluster) -> None:
    engine = through
    run = engine.submit(*VIA, steps=100_000, pace=0.02)
    engine.wait_step(run, 3)
    job = find_job(engine, run)
    assert job and engine.show(run).run.state == "running"
    script = engine.home.run(run.id).path / "train-1.sbatch"
    assert "srun" in script.read_text()
    wait_for(lambda: engine.show(run).ranks and engine.show(run).ranks[0].host, what="a heartbeat")
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"
    assert engine.client.request("continue", Continue(run=run.id)).state == "running"
    saved = engine.client.request("save", Command(run=run.id)).step
    assert saved in [found.step for found in engine.show(run).checkpoints]
    said = {"messages": [{"role": "user", "content": "one two"}]}
    question = Ask(service=run.id, question="generate", request="r1", arguments=said)
    assert engine.client.request("service_ask", question, 20).result["reply"] == "one two "
    engine.client.request("set", Set(run=run.id, changes={"training.max_steps": 90_000}))
    engine.kill()  # the job goes on, and the next engine follows it
    engine.restart()
    before = engine.show(run).run.step
    engine.wait_step(run, before + 3)
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # as before a time limit
    wait_for(lambda: engine.show(run).run.attempt == 2, 30, "the second attempt")
    first = engine.home.run(run.id).checkpoint_steps()[-1]
    assert first > before and ("queued", "slurm.requeued") in reasons(engine, run)
    wait_for(lambda: engine.show(run).run.step > first, 30, "steps of the second attempt")
    starts = [e for e, _ in journal.read(engine.home.run(run.id).events) if isinstance(e, journal.Start)]
    assert [(e.attempt, e.step) for e in starts] == [(1, 0), (2, first)]
    cluster.run("scancel", job)
    ended = engine.wait(run, "stopped", "failed", seconds=30)
    assert (ended.state, ended.code, ended.attempt) == ("stopped", "run.terminated", 2)
    assert engine.home.run(run.id).checkpoint_steps()[-1] == ended.step > first
    wait_for(lambda: not cluster.run("squeue", "-h"), what="the job's end")


def read_starts(engine: Engine, run: Run) -> list[tuple[int, int]]:
    """Attempt and first step of each start of the run's training."""
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).events))
    return [(entry.attempt, entry.step) for entry in entries if isinstance(entry, journal.Start)]


def test_a_job_is_queued_again_and_ends_while_no_engine_is_there(through: Engine, cluster: Cluster) -> None:
    engine = through
    run = engine.submit(*VIA, steps=100_000, pace=0.02)
    engine.wait_step(run, 3)
    job = find_job(engine, run)
    engine.kill()
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    wait_for(lambda: len(read_starts(engine, run)) == 2, 40, "the second attempt")
    saved = engine.home.run(run.id).checkpoint_steps()[-1]
    engine.restart()
    wait_for(lambda: (now := engine.show(run).run).attempt == 2 and now.step > saved, 30, "steps of the second attempt")
    assert engine.show(run).run.state == "running" and find_job(engine, run) == job
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"  # it is steered, not only read
    assert engine.client.request("continue", Continue(run=run.id)).state == "running"
    assert read_starts(engine, run) == [(1, 0), (2, saved)]
    engine.kill()
    cluster.run("scancel", job)
    wait_for(lambda: not cluster.run("squeue", "-h"), 30, "the job's end")
    engine.restart()
    ended = engine.wait(run, "stopped", "failed", seconds=30)
    assert (ended.state, ended.code, ended.attempt) == ("stopped", "run.terminated", 2)
    assert engine.home.run(run.id).checkpoint_steps()[-1] == ended.step > saved
    assert read_starts(engine, run) == [(1, 0), (2, saved)]


def test_a_job_that_waits_says_why_and_is_cancelled(through: Engine, cluster: Cluster) -> None:
    engine = through
    blocker = cluster.run(
        "sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap", "sleep 300"
    ).strip()
    run = engine.submit(*VIA, "launch.slurm={time: '1:00:00', extra: ['--exclusive']}", steps=10)
    waits = wait_for(
        lambda: (now := engine.show(run).run).code == "queue.slurm" and "Resources" in now.reason and now, what="why"
    )
    assert waits.state == "queued" and find_job(engine, run) in waits.reason
    other = engine.submit(*VIA, "launch.slurm={partition: nowhere}", steps=10)
    refused = engine.wait(other, "failed").problem
    assert refused is not None and refused.code == "slurm.refused" and "nowhere" in refused.cause + refused.title
    engine.client.request("stop", Stop(run=run.id))
    assert engine.wait(run, "stopped").step == 0
    assert find_job(engine, run) not in cluster.run("squeue", "-h", "-o", "%A")
    cluster.run("scancel", blocker)


def test_a_chat_worker_is_a_job_that_waits_answers_and_ends_with_the_chat(through: Engine, cluster: Cluster) -> None:
    """And with the client that is killed, and over the death of an engine."""
    engine = through

    def list_jobs() -> list[str]:
        return [line for line in cluster.run("squeue", "-h", "-o", "%j %T").splitlines() if "cockpit-chat" in line]

    def start_chat(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "cockpit", "--home", str(engine.home.root), "chat", "model-1"]
        command += ["--via", "slurm", "--slurm", "time=0:30:00", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    blocker = cluster.run("sbatch", "--parsable", "--exclusive", "--nodes=2", "--wrap", "sleep 300", "-o", "/dev/null")
    wait_for(
        lambda: cluster.run("squeue", "-h", "-t", "RUNNING", "-j", blocker.strip()), 60, "the job that has the nodes"
    )
    chat = start_chat("--slurm", "extra=[--exclusive]", "--prompt", "one two", "--json")
    waits = wait_for(
        lambda: [s for s in engine.client.request("attach").services if "Resources" in s.detail], what="why it waits"
    )
    assert "place 1 of 1 in partition all" in waits[0].detail
    engine.kill()  # the next engine follows the job
    engine.restart()
    assert [s.id for s in engine.client.request("attach").services] == [waits[0].id] and list_jobs()
    assert chat.wait(30) == 2 and "engine" in chat.stdout.read()  # as with a worker of this host
    wait_for(lambda: not list_jobs(), what="the end of a job that waited: the client has closed it")
    cluster.run("scancel", blocker.strip())
    chat = start_chat("--prompt", "one two", "--json")
    assert chat.wait(60) == 0
    assert '"one two "' in chat.stdout.read()
    wait_for(lambda: not list_jobs(), what="the job's end")
    chat = start_chat()
    wait_for(lambda: [s for s in engine.client.request("attach").services if s.state == "ready"], 40, "the worker")
    assert list_jobs() == [f"cockpit-{engine.client.request('attach').services[0].id} RUNNING"]
    chat.kill()
    wait_for(lambda: not list_jobs(), 30, "the end of a killed client's job")
    assert chat.wait() == -signal.SIGKILL
    wait_for(lambda: not [*(engine.home.engine / "services").glob("*/")], 15, "the end of its folder")
    other = OpenService(kind="chat", launch={"slurm": {"partition": "nowhere"}})
    service = engine.client.request("service_open", other).id
    with pytest.raises(ProblemError) as refused:
        engine.client.request("service_ask", Ask(service=service, question="load", request="r", arguments={}), 20)
    assert refused.value.problem.code == "slurm.refused" and "nowhere" in refused.value.problem.cause
    jobs = ({"partition": 1}, {"extra": ["--array=1-3"]}, {"gpus": 1}, ["partition"])
    for wrong in ({"nodes": 2}, {"environment": {"1A": "x"}}, *({"slurm": job} for job in jobs)):
        with pytest.raises(ProblemError, match="Slurm cannot be asked"):
            engine.client.request("service_open", OpenService(kind="chat", launch=wrong))


@long
def test_a_checkpoint_answers_from_a_job(cluster: Cluster, bare_home, tmp_path, monkeypatch) -> None:
    """With the real worker, and what the run's own profile asks Slurm for."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    text = PROFILE.format(base=make_model(tmp_path / "tiny")).replace("epochs: 1", "max_steps: 2")
    text += "launch: {slurm: {partition: all, time: '1:00:00'}}\n"
    engine = Engine(bare_home, "engine.workers", warm=True)
    try:
        run: Run = engine.client.request("submit", Submit(profile=text, directory="/"))
        engine.wait(run, "completed", seconds=120)
        command = [sys.executable, "-P", "-m", "cockpit", "--home", str(engine.home.root), "chat", "last"]
        command += ["--via", "slurm", "--prompt", "hi", "--json", "--max-new-tokens", "4"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0 and json.loads(done.stdout)["tokens"] in range(1, 5), done.stderr
        wait_for(lambda: not cluster.run("squeue", "-h"), what="the job's end")
    finally:
        engine.close()
        cluster.clear()


def test_two_nodes_of_a_job_meet_and_the_stages_after_training_are_jobs_of_their_own(through: Engine) -> None:
    engine = through
    launch = "launch={via: slurm, nodes: 2}"  # of the stages after training each has one
    run = engine.submit(launch, "data.test=[{source: triples/test.jsonl}]", steps=100_000, pace=0.02)
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    log = engine.home.run(run.id).log.read_text()
    assert "node 0 of 2" in log and "node 1 of 2" in log
    engine.client.request("set", Set(run=run.id, changes={"training.max_steps": 1}), 30)
    done = engine.wait(run, "completed", "failed", seconds=90)
    assert done.state == "completed" and done.stage == "evaluate", done.problem
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    jobs = [(entry.stage, entry.slurm_name != "", entry.slurm != "")
            for entry in entries if isinstance(entry, journal.Launched)]  # fmt: skip
    submitted = [(stage, True, known) for stage in ("train", "evaluate") for known in (False, True)]
    assert jobs == [("prepare", False, False), *submitted]
    script = (engine.home.run(run.id).path / "evaluate-1.sbatch").read_text()
    assert "--nodes=1" in script


@long
def test_a_run_that_slurm_queues_again_goes_on_exactly(cluster: Cluster, bare_home, tmp_path, monkeypatch) -> None:
    """With the real worker: SIGUSR1 as before a time limit, then a cancelled job, which saves as well."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    base = make_model(tmp_path / "tiny")
    text = (
        PROFILE.format(base=base)
        .replace("rehearsal: true", "rehearsal: false")
        .replace("epochs: 1", "max_steps: 1000000")
        .replace("every_steps: 100", "every_steps: 100000")
    )
    text += "launch: {via: slurm, slurm: {time: '1:00:00'}}\n"
    engine = Engine(bare_home, "engine.workers", warm=True)
    try:
        run: Run = engine.client.request("submit", Submit(profile=text, directory="/"))
        wait_for(lambda: engine.show(run).run.step > 5, 60, "the first steps")
        (sample,) = wait_for(lambda: engine.show(run).hosts, 10, "a sample of the job's host")
        assert sample.host.name == host_name() and sample.host.memory_total > 0
        cluster.run("scancel", "--signal=USR1", "--batch", find_job(engine, run))
        again = wait_for(lambda: (now := engine.show(run).run).attempt == 2 and now, 30, "the second attempt")
        saved = engine.home.run(run.id).checkpoint_steps()[-1]
        wait_for(lambda: engine.show(run).run.step > saved + 2, 60, "steps after it")
        assert ("queued", "slurm.requeued") in reasons(engine, run) and again.id == run.id
        starts = [e for e, _ in journal.read(engine.home.run(run.id).events) if isinstance(e, journal.Start)]
        assert [(e.attempt, e.step, e.resumed) for e in starts[1:]] == [(2, saved, EXACT)]
        cluster.run("scancel", find_job(engine, run))
        ended = engine.wait(run, "stopped", "failed", seconds=30)
        assert (ended.state, ended.code) == ("stopped", "run.terminated")
        assert engine.home.run(run.id).checkpoint_steps()[-1] == ended.step > saved
    finally:
        engine.close()
        cluster.clear()
