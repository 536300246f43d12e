"""`cockpit merge RUN --last K`: the average of checkpoints that a session has written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from engine.models import folders, targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.workers import merge
from tests.training.here import Here
from tests.training.preferences import FULL

CHOSEN = {"method": "linear", "weights": "", "density": 0.5, "seed": 0, "base": None}
SAVED = ("training.max_steps=3", "checkpoint.every_steps=1", "checkpoint.keep=3", "training.learning_rate=0.05")


def read(folder: Path, base: Path) -> dict[str, Any]:
    """The weights that a folder stands for."""
    if not (folder / folders.ADAPTER).is_file():
        return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return dict(model.merge_and_unload().state_dict())


@pytest.mark.parametrize(("kind", "changes"), [("adapter", ()), ("model", FULL)])
def test_the_average_of_the_last_checkpoints_loads(
    prepared: dict[str, Any], tmp_path: Path, kind: str, changes: tuple[str, ...]
) -> None:
    here = Here(tmp_path, "run", prepared, *changes, *SAVED)
    here.train()
    here.run.profile.write_text("model: {}\n")
    home, out = Home(tmp_path), tmp_path / "out"
    wanted = argparse.Namespace(targets=["run"], last=2, out=out, **CHOSEN)
    told = merge._merge(home, wanted)
    assert told == {"directory": str(out), "kind": kind, "merged": ["run@2", "run@3"]}
    target = targets.resolve(str(out), home, tmp_path)
    targets.check(target, folders.find_weights_problems)
    assert not folders.find_problems(out) and target.lock is not None
    base = Path(prepared["base"])
    made, *parts = (read(folder, base) for folder in (out, here.run.checkpoint(2), here.run.checkpoint(3)))
    assert any(not torch.equal(parts[0][name], parts[1][name]) for name in made), "the last step changed something"
    for name, value in made.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-4, atol=1e-5)
    for last, why in ((4, "it has 3 checkpoints"), (1, "at least two")):
        with pytest.raises(ProblemError, match=why):
            merge._merge(home, argparse.Namespace(targets=["run"], last=last, out=tmp_path / "other", **CHOSEN))
