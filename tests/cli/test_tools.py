"""Verbs that hand over to a worker in the foreground."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cockpit


def test_the_workers_output_and_exit_status_are_the_verbs_own(cockpit: Cockpit, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    found = cockpit("model", "find", "half", "--json")
    assert found.returncode == 0
    assert [Path(model["path"]).name for model in json.loads(found.stdout)] == ["half"]
    damaged = cockpit("model", "verify", "half")
    assert damaged.returncode == 1
    assert "tokenizer" in damaged.stdout + damaged.stderr
