"""`launch.strategy: fsdp`: the numbers of one process, with weights, gradients and optimiser states divided among the
ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.protocol.journal import Evaluation, Start
from tests.training.harness import Supervised

LOSSES = ("train/loss", "train/grad_norm", "train/learning_rate")
FULL = ("adapter={kind: none}", "training.learning_rate=1e-3", "training.max_grad_norm=0.5")
ALIKE = ("training.epochs=2", "checkpoint.every_steps=4", "checkpoint.keep=20", "evaluation.every_steps=4")


def compare(run: Supervised, whole: Supervised, tolerance: float = 1e-4) -> None:
    for name in LOSSES:
        ours, theirs = run.series(name), whole.series(name)
        assert ours.keys() == theirs.keys() and ours, name
        assert ours == pytest.approx(theirs, rel=tolerance), name
    ours, theirs = (
        {entry.step: entry.values["eval/loss"] for entry in each.entries(Evaluation)} for each in (run, whole)
    )
    assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize("changes", [(), FULL], ids=["lora", "full"])
def test_two_ranks_compute_what_one_process_does(start_run: Callable[..., Supervised], changes: tuple[str, ...]) -> None:
    whole = start_run("one", *changes, *ALIKE)
    whole.train()
    run = start_run("two", *changes, *ALIKE, "training.micro_batch=2", "launch={processes: 2, strategy: fsdp}")
    run.train(processes=2)
    compare(run, whole)
    assert run.run.checkpoint_steps() == whole.run.checkpoint_steps()
