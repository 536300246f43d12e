"""`launch.strategy: deepspeed`: the numbers of one process, and a ds_config that cannot contradict the profile."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.profile import ProfileError, parse
from engine.protocol.journal import BadBatch, Ledger, Start
from tests.training.harness import PROFILE, Supervised
from tests.training.test_fsdp import FULL, compare

FOLDER = Path(sys.prefix, "deepspeed")
"""Where `make test` installs it, apart from what every other test imports."""


def find_folder() -> Path | None:
    """The folder that has the package, where there is one."""
    if (FOLDER / "deepspeed").is_dir():
        return FOLDER
    spec = importlib.util.find_spec("deepspeed")
    return Path(spec.origin).parents[1] if spec and spec.origin else None


PLACE = find_folder()
needs_deepspeed = pytest.mark.skipif(PLACE is None, reason="deepspeed is not installed: make test does")
BRIEF = ("training.max_steps=6", "checkpoint.every_steps=3", "evaluation.every_steps=3", "checkpoint.keep=20")


def launch(stage: int, **more: Any) -> str:
    config = {"zero_optimization": {"stage": stage, **more}, "gradient_clipping": "auto"}
    return f"launch={json.dumps({'processes': 2, 'strategy': 'deepspeed', 'deepspeed': config})}"


def train(run: Supervised, *, fails: bool = False, fault: str = "") -> None:
    run.start(processes=2, environment={"PYTHONPATH": str(PLACE)}, fault=fault)
    assert bool(run.wait()) == fails, run.log()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (2, ()),
        (3, FULL),
        (3, ("training.gradient_checkpointing=true", "training.accumulation=2", "evaluation.probes=[w1 w2, w3]")),
        (2, (*FULL, "training.accumulation=2")),
        (1, (*FULL, "training.optimizer=sgd")),
    ],
    ids=["zero2-lora", "zero3-full", "zero3-lora-checkpointing", "zero2-full-accumulation", "zero1-sgd"],
)
def test_two_ranks_compute_what_one_process_does(
    start_run: Callable[..., Supervised], stage: int, changes: tuple[str, ...]
) -> None:
    from safetensors.torch import load_file

    whole = start_run("one", *changes, *BRIEF)
    whole.train()
    run = start_run("two", *changes, *BRIEF, "training.micro_batch=2", launch(stage))
    train(run)
    compare(run, whole)
    for step in whole.run.checkpoint_steps():
        ours, theirs = (next(each.run.checkpoint(step).glob("*.safetensors")) for each in (run, whole))
        found, wanted = load_file(ours), load_file(theirs)
        assert ours.name == theirs.name and found.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)
