"""`cockpit train --grid` and `cockpit grid`, as processes, against a real engine with scripted workers."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cockpit

pytestmark = pytest.mark.usefixtures("engine")

SCRIPTED = ("triples-qlora", "--set", "training.learning_rate=0.01", "--set", "logging.tensorboard=false")


def test_a_grid_is_checked_whole_then_queued_followed_and_compared(cockpit: Cockpit) -> None:
    wrong = cockpit("train", *SCRIPTED, "--grid", "training.max_steps=2,none")
    assert wrong.returncode == 2 and "training.max_steps: must be a valid integer" in wrong.stderr
    assert json.loads(cockpit("runs", "--json").stdout) == json.loads(cockpit("grid", "--json").stdout) == []
    assert cockpit("train", *SCRIPTED, "--grid", "training.max_steps").returncode == 2
    assert cockpit("grid", "none").returncode == 2

    answer = cockpit("train", *SCRIPTED, "--grid", "training.max_steps=2,3", "--grid", "adapter.rank=8", "--json")
    assert answer.returncode == 0, answer.stderr
    assert "2 runs queued as the grid triples-qlora" in answer.stderr
    document = json.loads(answer.stdout)
    assert document["axes"] == {"training.max_steps": ["2", "3"], "adapter.rank": ["8"]}
    assert {(run["state"], run["step"]) for run in document["runs"]} == {("completed", 2), ("completed", 3)}
    assert all(run["settings"]["training.max_steps"] == str(run["step"]) for run in document["runs"])

    assert json.loads(cockpit("grid", "last", "--json").stdout) == document
    shown = cockpit("grid", "triples-qlora").stdout.splitlines()
    assert shown[0].split()[:5] == ["RUN", "STATE", "STEP", "MAX_STEPS", "RANK"]
    assert "★" in shown[1] and "★" not in shown[2]
    ids = cockpit("train", *SCRIPTED, "--grid", "training.max_steps=2", "--detach").stdout.split()
    assert len(ids) == 1
    assert [each["name"] for each in json.loads(cockpit("grid", "--json").stdout)] == [
        "triples-qlora-2",
        "triples-qlora",
    ]
