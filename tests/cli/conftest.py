from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.protocol.home import Home
from tests import warm_engine

ROOT = Path(__file__).parents[2]
Cockpit = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cockpit.cli", *arguments]


def environment(home: Home, **more: str) -> dict[str, str]:
    return os.environ | warm_engine.environment() | {"COCKPIT_HOME": str(home.root), "COLUMNS": "120"} | more


@pytest.fixture
def cockpit(bare_home: Home, tmp_path: Path) -> Cockpit:
    """Runs `cockpit ARGUMENTS` to its end as a shell would, without a terminal, in an empty working directory."""

    def run(*arguments: str, seconds: float = 60.0, **more: str) -> subprocess.CompletedProcess[str]:
        return warm_engine.run(command(*arguments), env=environment(bare_home, **more), cwd=tmp_path, timeout=seconds)

    return run
