"""Ranks that somebody starts by hand, with the lines that the run gives."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess

import psutil
import pytest

from engine.protocol.journal import Warn, read
from engine.protocol.messages import Command, Run, Stop
from tests.scripted.bench import Engine, wait_for

pytestmark = pytest.mark.slow


def find_lines(engine: Engine, run: Run) -> list[str]:
    entries = (entry for entry, _ in read(engine.home.run(run.id).events))
    said = [entry.message for entry in entries if isinstance(entry, Warn) and entry.code == "launch.run_by_hand"]
    return re.findall(r"host \d: (.*)", said[-1]) if said else []


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_run_waits_for_its_lines_and_names_a_node_that_dies(engine: Engine) -> None:
    run = engine.submit("launch={via: none, nodes: 2, environment: {A_NAME: 'its value'}}", steps=100_000, pace=0.02)
    lines = wait_for(lambda: find_lines(engine, run), 20, "the lines")
    assert len(lines) == 2 and all("'A_NAME=its value'" in line for line in lines)
    assert engine.show(run).run.state == "running"
    nodes = [subprocess.Popen(shlex.split(line), cwd="/", start_new_session=True) for line in lines]
    wait_for(lambda: engine.show(run).run.step > 3, 90, "the first steps")
    assert engine.client.request("pause", Command(run=run.id)).state == "paused"
    assert engine.client.request("continue", Command(run=run.id)).state == "running"
    ranks = psutil.Process(nodes[1].pid).children(recursive=True)
    assert ranks
    engine.process.send_signal(signal.SIGSTOP)  # on a host of their own, no engine would end them
    nodes[1].kill()
    wait_for(lambda: not any(map(is_alive, ranks)), 20, "the ranks of a killed node end")
    engine.process.send_signal(signal.SIGCONT)
    # A busy machine delays the watch itself, which then begins anew to count the ten seconds of silence.
    failed = engine.wait(run, "failed", seconds=120).problem
    assert failed is not None and failed.code in ("launch.host_lost", "worker.failed") and "Node" in failed.title
    assert nodes[0].wait(60) != 0 and not engine.processes(run)


def test_waiting_for_the_lines_can_be_ended(engine: Engine) -> None:
    run = engine.submit("launch={via: none, nodes: 2}", steps=10)
    wait_for(lambda: find_lines(engine, run), 20, "the lines")
    engine.client.request("stop", Stop(run=run.id, now=True))
    assert engine.wait(run, "stopped").step == 0
