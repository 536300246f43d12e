"""Prepared rows are checked when a run starts: damaged ones are not trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.storage import cache
from tests.training.here import Here


def _run(prepared: dict[str, Any], folder: Path) -> Here:
    """A run whose rows are in the home's cache."""
    home = Home(folder).create()
    source = Path(prepared["train"]).parent
    with cache.new_entry(home, "rows") as entry:
        shutil.copytree(source, entry, dirs_exist_ok=True)
    own = {part: str(home.cache / "rows" / part) for part in ("train", "validation")}
    return Here(folder, "run", prepared | own, "training.rehearsal=false", "training.max_steps=2")


@pytest.mark.parametrize("damage", ["flip", "missing", "prepared"])
def test_damaged_rows_are_not_trained(prepared: dict[str, Any], tmp_path: Path, damage: str) -> None:
    run = _run(prepared, tmp_path)
    part = next((tmp_path / "cache" / "rows" / "train").glob("*.arrow"))
    content = part.read_bytes()
    if damage == "flip":
        part.write_bytes(content[:800] + bytes([content[800] ^ 1]) + content[801:])
    elif damage == "missing":
        shutil.rmtree(tmp_path / "cache" / "rows")
    else:
        run.run.prepared.write_bytes(b'{"train": ')
    with pytest.raises(ProblemError) as raised:
        run.train()
    assert raised.value.problem.code == "data.cache_damaged"
    assert not run.run.prepared.exists(), "so that the next attempt prepares them again"
    assert run.step() == 0


def test_whole_rows_are(prepared: dict[str, Any], tmp_path: Path) -> None:
    assert _run(prepared, tmp_path).train() == ("completed", 2)
