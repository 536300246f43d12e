"""A server as users start it: the verb, the engine, the worker, a real port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.protocol.home import Home
from engine.protocol.sockets import list_directories
from tests import warm_engine
from tests.conftest import end_processes_of
from tests.training.harness import make_model

ENDLESS = 100_000
"""Tokens that a reply of the tiny model may have: more than a test waits for."""


@dataclass
class Kitchen:
    """A home with a tiny model in it, and the verb."""

    home: Home
    model: Path
    environment: dict[str, str] = field(default_factory=dict)

    def cockpit(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return warm_engine.run(
            [sys.executable, "-m", "cockpit.cli", *arguments],
            env=os.environ | warm_engine.environment() | {"COCKPIT_HOME": str(self.home.root)} | more,
            cwd=self.home.root,
            timeout=120,
        )

    def serve(self, *arguments: str, target: str = "", **more: str) -> Served:
        """A server that stays. With another's options where they are given."""
        done = self.cockpit("serve", target or str(self.model), "--port", "0", "--detach", "--json", *arguments, **more)
        assert done.returncode == 0, done.stderr
        return Served(self, json.loads(done.stdout))


@dataclass
class Served:
    kitchen: Kitchen
    told: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.told["address"])

    @property
    def port(self) -> int:
        return int(self.address.removesuffix("/v1").rpartition(":")[2])

    @property
    def process(self) -> psutil.Process:
        services = json.loads(self.kitchen.cockpit("engine", "status", "--json").stdout)["services"]
        return psutil.Process(next(each["pid"] for each in services if each["id"] == self.told["service"]))

    def stop(self) -> subprocess.CompletedProcess[str]:
        return self.kitchen.cockpit("serve", "--stop", self.told["service"])


def _never_ending(model: Path) -> None:
    """Weigh the stop token so that no greedy reply has it."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][1] = 0  # the likeliest of 64 random numbers is above it
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    folder = tmp_path_factory.mktemp("serving")
    model = make_model(folder / "tiny")
    _never_ending(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2 * ENDLESS}))
    kitchen = Kitchen(Home(folder / "home").create(), model)
    yield kitchen
    end_processes_of(kitchen.home)
    for directory in list_directories(kitchen.home):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def served(kitchen: Kitchen) -> Served:
    """One for all tests that leave it as it was."""
    return kitchen.serve("--slots", "16", "--queue", "64", "--max-body", "20000")
