"""Runs on several hosts over ssh: real sshds, a real engine, torchrun on each host. The hosts are names of this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.messages import Command, Run, Set
from tests.cluster import UnavailableError, long
from tests.cluster.ssh import Hosts, find_missing
from tests.scripted.bench import ROOT, Engine, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "-")]


TEST = "data.test=[{source: triples/test.jsonl}]"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    try:
        hosts = Hosts(tmp_path_factory.mktemp("ssh"), "alpha", "beta")
    except UnavailableError as error:
        pytest.skip(str(error))
    yield hosts
    hosts.close()


def over(hosts: Hosts, *names: str, **more: object) -> str:
    return "launch=" + json.dumps({"via": "ssh", "hosts": names, "ssh_options": hosts.options, **more})


def find_node(run: Run, host: str) -> psutil.Process:
    """The agent of the node that was started over ssh on this host."""
    node = {"alpha": "0", "beta": "1"}[host]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ValueError):
            line = process.cmdline()
            if run.id in line and "engine.workers.node" in line and line[line.index("--node") + 1] == node:
                return process
    raise AssertionError(f"no node on {host}")


def find_rank(run: Run, host: str) -> psutil.Process:
    """A rank of that node."""
    ranks = (each for each in find_node(run, host).children(recursive=True) if run.id in each.cmdline())
    return next(each for each in ranks if "engine.workers.launch" not in each.cmdline())


def find_states(engine: Engine, run: Run, state: str) -> list[journal.State]:
    entries = (entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    return [entry for entry in entries if isinstance(entry, journal.State) and entry.state == state]


def find_starts(engine: Engine, run: Run) -> list[journal.Start]:
    return [entry for entry, _ in journal.read(engine.home.run(run.id).events) if isinstance(entry, journal.Start)]


def begun_wall(monotonic: float) -> float:
    """The time of day of a moment."""
    return time.time() - (time.monotonic() - monotonic)


def test_a_killed_rank_is_named_with_its_host_and_the_run_goes_on_with_fewer(engine: Engine, hosts: Hosts) -> None:
    """A rank of the second host is killed; then that host refuses, and the next attempt does without it. The stage
    after training is this host's."""
    run = engine.submit(over(hosts, "alpha", "beta", restarts=1, min_nodes=1), TEST, steps=100_000, pace=0.02)
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    log = engine.home.run(run.id).log.read_text()
    assert "[alpha] node 0 of 2" in log and "[beta] node 1 of 2" in log and "store 127.0.0.1" in log
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"
    assert engine.client.request("continue", Command(run=run.id)).state == "running"
    saved = engine.client.request("save", Command(run=run.id)).step
    hosts.refuse("beta")
    begun = time.monotonic()
    find_rank(run, "beta").kill()
    wait_for(lambda: engine.show(run).run.attempt == 2, 40, "the next attempt")
    failed = find_states(engine, run, "failed")[0].problem
    assert failed is not None and "on beta" in failed.title and "SIGKILL" in failed.cause + failed.traceback
    assert find_states(engine, run, "failed")[0].time - begun_wall(begun) < 10
    wait_for(lambda: [each for each in find_starts(engine, run) if each.attempt == 2], 90, "the second attempt's start")
    assert find_starts(engine, run)[-1].step >= saved
    hosts.start("beta")
    assert "going on with 1 of 2 hosts: alpha" in engine.home.run(run.id).log.read_text()
    engine.client.request("set", Set(run=run.id, changes={"training.max_steps": 1}), 30)
    done = engine.wait(run, "completed", "failed", "stopped", seconds=60)
    assert (done.state, done.stage) == ("completed", "evaluate"), done.problem
    wait_for(lambda: not engine.processes(run), 20, "no process is left")


def test_a_lost_connection_is_told_apart_from_a_dead_rank(engine: Engine, hosts: Hosts) -> None:
    run = engine.submit(over(hosts, "alpha", "beta"), steps=100_000, pace=0.02)
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    engine.process.send_signal(signal.SIGSTOP)
    for process in psutil.process_iter():
        if (
            process.name() == "ssh"
            and "beta" in process.cmdline()
            and any(run.id in part for part in process.cmdline())
        ):
            process.kill()
    wait_for(lambda: not engine.processes(run), 40, "no process is left on any host, without the engine's help")
    engine.process.send_signal(signal.SIGCONT)
    failed = engine.wait(run, "failed", seconds=40).problem
    assert failed is not None and failed.code == "launch.host_lost" and "beta" in failed.title
    assert "can be reached" in failed.cause


@long
def test_a_killed_agent_is_named_with_its_host_and_leaves_no_ranks(engine: Engine, hosts: Hosts) -> None:
    run = engine.submit(over(hosts, "alpha", "beta"), steps=100_000, pace=0.02)
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    begun = time.monotonic()
    find_node(run, "beta").kill()
    failed = engine.wait(run, "failed", seconds=40)
    assert failed.problem is not None and "beta" in failed.problem.title + failed.problem.cause
    assert find_states(engine, run, "failed")[0].time - begun_wall(begun) < 12
    wait_for(lambda: not engine.processes(run), 20, "no process is left on any host")


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"ssh_options": ["-o", "Port=1"]}, "launch.host_unreachable"), ({}, "launch.host_unreachable")],
)
def test_a_host_that_does_not_answer_is_named(engine: Engine, hosts: Hosts, settings: dict, code: str) -> None:
    options = {"ssh_options": [*settings.get("ssh_options", []), *hosts.options]}
    names = ("alpha", "beta") if settings else ("alpha", "nowhere.invalid")
    run = engine.submit(over(hosts, *names, **options), steps=10)
    failed = engine.wait(run, "failed", seconds=60).problem
    assert failed is not None and failed.code == code


def test_the_doctor_measures_between_hosts(hosts: Hosts, bare_home: Home) -> None:
    options = [f"--ssh-option={option}" for option in hosts.options]
    command = [sys.executable, "-m", "cockpit", "doctor", "--hosts", "alpha,beta", *options, "--json"]
    environment = os.environ | {"COCKPIT_HOME": str(bare_home.root), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"], done
    (link,) = [check["detail"] for check in report["checks"] if check["name"] == "link"]
    assert link.startswith("alpha – beta: ") and "MB/s" in link and "gloo" in link
    assert list(bare_home.engine.glob("doctor-*")) == []
