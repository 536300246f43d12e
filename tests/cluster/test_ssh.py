"""Runs on several hosts over ssh: a real sshd, a real engine, torchrun on each host; the hosts are aliases of this one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psutil
import pytest

from engine.protocol.messages import Command, Run, Stop
from tests.cluster.ssh import Hosts, find_missing
from tests.scripted.bench import Engine, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "-")]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("ssh"), "alpha", "beta")
    yield hosts
    hosts.close()


def over(hosts: Hosts, *names: str, **more: object) -> str:
    return "launch=" + json.dumps({"via": "ssh", "hosts": names, "ssh_options": hosts.options, **more})


def find_ranks(run: Run, node: int) -> list[psutil.Process]:
    """The ranks of a node that was started over ssh."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if run.id in line and "engine.workers.node" in line and line[line.index("--node") + 1] == str(node):
                found += [each for each in process.children(recursive=True) if "torchrun" not in each.name()]
        except psutil.Error:
            continue
    return found


def test_two_hosts_train_are_steered_and_end(engine: Engine, hosts: Hosts) -> None:
    run = engine.submit(over(hosts, "alpha", "beta"), steps=100_000, pace=0.02)
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    log = engine.home.run(run.id).log.read_text()
    assert "[alpha] node 0 of 2" in log and "[beta] node 1 of 2" in log and "store 127.0.0.1" in log
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"
    assert engine.client.request("continue", Command(run=run.id)).state == "running"
    engine.client.request("stop", Stop(run=run.id), 30)
    assert engine.wait(run, "stopped", "failed", seconds=60).state == "stopped"
    wait_for(lambda: not engine.processes(run), 20, "no process is left")
