"""Ranks that somebody starts by hand, with the lines that the run gives."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from engine.protocol.journal import Warn, read
from engine.protocol.messages import Command, Run, Stop
from tests.scripted.bench import Engine, wait_for

pytestmark = pytest.mark.slow


def find_lines(engine: Engine, run: Run) -> list[str]:
    entries = (entry for entry, _ in read(engine.home.run(run.id).events))
    said = [entry.message for entry in entries if isinstance(entry, Warn) and entry.code == "launch.run_by_hand"]
    return re.findall(r"host \d: (.*)", said[-1]) if said else []


def test_a_run_waits_for_its_lines_and_names_a_node_that_dies(engine: Engine) -> None:
    run = engine.submit("launch={via: none, nodes: 2}", steps=100_000, pace=0.02)
    lines = wait_for(lambda: find_lines(engine, run), 20, "the lines")
    assert len(lines) == 2 and engine.show(run).run.state == "running"
    nodes = [subprocess.Popen(shlex.split(line), cwd="/", start_new_session=True) for line in lines]
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"
    assert engine.client.request("continue", Command(run=run.id)).state == "running"
    nodes[1].kill()
    failed = engine.wait(run, "failed", seconds=40).problem
    assert failed is not None and failed.code in ("launch.host_lost", "worker.failed") and "Node" in failed.title
    assert nodes[0].wait(30) != 0 and not engine.processes(run)


def test_waiting_for_the_lines_can_be_ended(engine: Engine) -> None:
    run = engine.submit("launch={via: none, nodes: 2}", steps=10)
    wait_for(lambda: find_lines(engine, run), 20, "the lines")
    engine.client.request("stop", Stop(run=run.id, now=True))
    assert engine.wait(run, "stopped").step == 0
