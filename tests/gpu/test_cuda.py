"""The demo on a card: what users see first."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import RunRef

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]


def cockpit(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "cockpit.cli", "--home", str(home.root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def learnt(home: Home, *settings: str) -> None:
    """A short demo with these settings: it completes, and the held-out loss has halved."""
    options = [part for setting in settings for part in ("--set", setting)]
    done = cockpit(home, "demo", "--headless", "--json", "--set", "evaluation.samples=4", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["after"]["loss"] < document["before"]["loss"] / 2


def test_the_demo_learns_reports_its_card_and_talks(home: Home) -> None:
    import torch

    learnt(home, "training.optimizer=paged_adamw_8bit")
    with Client(home) as client:
        detail = client.request("show", RunRef(run="last"))
        assert detail.facts["device"] == torch.cuda.get_device_name(0)
        assert detail.run.devices == [0]
        assert detail.run.metrics["device/0/memory_peak"] > 1e8
        telemetry = client.request("attach").telemetry
        assert telemetry.backend == "nvidia" and telemetry.devices[0].memory_total > 1e9
    said = cockpit(home, "chat", "last", "--task", "triples", "--prompt", "Ada founded Vertex Labs.", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(json.loads(said.stdout)["reply"])


def test_all_cards_together(home: Home) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one card: NCCL between ranks needs two")
    learnt(home, "launch.processes=all", "training.micro_batch=2")
