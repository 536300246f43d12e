"""What `make setup` says about the driver before it installs torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.hardware.driver import advise

HEADER = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: {}   |"


def machine(cuda: str, *cards: str) -> str:
    return advise(lambda *command: HEADER.format(cuda) if len(command) == 1 else "\n".join(cards))


@pytest.mark.parametrize(
    ("cuda", "card", "build"),
    [
        ("13.0", "NVIDIA H200, 9.0", ""),
        ("13.1", "NVIDIA B200, 10.0", ""),
        ("12.4", "NVIDIA H200, 9.0", "cu128"),
        ("12.4", "Tesla V100-SXM2-32GB, 7.0", "cu126"),
        ("13.0", "Tesla V100-SXM2-32GB, 7.0", "cu126"),
    ],
)
def test_the_build_that_the_driver_and_the_card_run(cuda: str, card: str, build: str) -> None:
    told = machine(cuda, card)
    assert (f"The build {build} is: make setup TORCH_INDEX=URL" in told) if build else told == ""


def test_cards_of_two_kinds_need_a_build_for_both() -> None:
    assert "The build cu126 is" in machine("13.0", "NVIDIA H200, 9.0", "Tesla V100, 7.0")
    assert "no build of torch 2.13 is for all these cards" in machine("13.0", "NVIDIA B200, 10.0", "Tesla V100, 7.0")
    assert "no build" in machine("11.8", "NVIDIA A100, 8.0") and "update the driver" in machine("11.8", "A100, 8.0")


def test_without_a_driver_nothing_is_said() -> None:
    assert advise(lambda *_: "") == ""
    folder = Path(__file__).parents[2]
    command = [sys.executable, "-S", "-m", "engine.hardware.driver"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PATH": ""}, check=True)
    assert (done.stdout, done.stderr) == ("", "")
