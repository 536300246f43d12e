"""What is left of an attempt when the next one has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from engine.workers import meeting
from engine.workers.meeting import Lead
from tests.scripted.bench import wait_for

ROOT = Path(__file__).parents[2]
SCRIBE = """
import itertools, pathlib, time
for line in itertools.count():
    with pathlib.Path("scribbled").open("a") as file:
        file.write(f"{line}\\n")
    time.sleep(0.02)
"""


def test_a_node_that_wakes_up_in_the_next_attempt_ends_its_ranks_and_leaves_the_files_alone(tmp_path: Path) -> None:
    """As a host that was suspended, or cut off for long: the next attempt has begun without it."""
    control = tmp_path / "control"
    control.mkdir()
    (tmp_path / "scribe.py").write_text(SCRIBE)
    meeting.write(meeting.lead_file(control), Lead(attempt=1))
    agent = subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.workers.node", "--worker", "scribe", "--node", "0", "--nodes", "1",
         "--processes", "1", "--lead", "files", "--attempt", "1", "--address", f"file:{control}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    scribbled = tmp_path / "scribbled"
    try:
        wait_for(lambda: scribbled.is_file() and (node := meeting.read_node(control, 0, 1)) and node.state == "running")
        (rank,) = psutil.Process(agent.pid).children()
        for pid in (agent.pid, rank.pid):
            os.kill(pid, signal.SIGSTOP)
        meeting.write(meeting.lead_file(control), Lead(attempt=2))
        meeting.write(meeting.node_file(control, 0), meeting.introduce(0, 2))
        before = meeting.node_file(control, 0).read_bytes()
        for pid in (rank.pid, agent.pid):  # a rank that is still stopped when the agent ends it would not get SIGTERM
            os.kill(pid, signal.SIGCONT)
        while agent.poll() is None:
            assert meeting.node_file(control, 0).read_bytes() == before
            time.sleep(0.005)
        assert agent.returncode == 128 + signal.SIGTERM
        assert meeting.node_file(control, 0).read_bytes() == before
        wait_for(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE)
        written = scribbled.read_bytes()
        time.sleep(0.1)
        assert scribbled.read_bytes() == written
    finally:
        agent.kill()
        agent.wait()
