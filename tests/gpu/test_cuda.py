"""What only a card can show. `pytest -m gpu` on a machine that has one; skipped elsewhere. Not run so far: no card was
to be had."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import RunRef

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(900)]


def cockpit(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "cockpit.cli", "--home", str(home.root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def learnt(home: Home, *settings: str) -> dict[str, object]:
    """A short demo with these settings: it completes, and the held-out loss has halved."""
    options = [part for setting in settings for part in ("--set", setting)]
    done = cockpit(home, "demo", "--headless", "--json", "--set", "evaluation.samples=4", *options)
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    assert document["after"]["loss"] < document["before"]["loss"] / 2  # type: ignore[index]
    return document


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_card_trains_every_quantisation_and_reports_its_memory(home: Home, quantization: str) -> None:
    import torch

    learnt(home, f"model.quantization={quantization}")
    with Client(home) as client:
        detail = client.request("show", RunRef(run="last"))
        assert detail.facts["device"] == torch.cuda.get_device_name(0)
        assert detail.run.devices == [0]
        assert detail.run.metrics["device/0/memory_peak"] > 1e8
        telemetry = client.request("attach").telemetry
        assert telemetry.backend == "nvidia" and telemetry.devices[0].memory_total > 1e9


def test_an_8_bit_optimiser_works_where_there_is_a_card(home: Home) -> None:
    learnt(home, "training.optimizer=paged_adamw_8bit")


def test_all_cards_together(home: Home) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one card: NCCL between ranks needs two")
    learnt(home, "launch.processes=all", "training.micro_batch=2")


def test_a_checkpoint_of_a_card_talks(home: Home) -> None:
    learnt(home)
    said = cockpit(home, "chat", "last", "--task", "triples", "--prompt", "Ada founded Vertex Labs.", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(json.loads(said.stdout)["reply"])
