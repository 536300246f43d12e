"""`launch.strategy: fsdp`: the numbers of one process, with weights, gradients and optimiser states divided among the
ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.journal import Evaluation, Start
from tests.training.harness import Supervised

LOSSES = ("train/loss", "train/grad_norm", "train/learning_rate")
FULL = ("adapter={kind: none}", "training.learning_rate=1e-3", "training.max_grad_norm=0.5")
SHARDED = "launch={processes: 2, strategy: fsdp}"
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


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_preference_methods(
    start_run: Callable[..., Supervised], sets: dict[str, dict[str, Any]], method: str, full: bool
) -> None:
    changes = (*(FULL if full else ()), f"method={{kind: {method}}}", "training.max_steps=5", "evaluation.every_steps=2")
    whole = start_run("one", *changes, prepared=sets[method])
    whole.train()
    run = start_run("two", *changes, "training.micro_batch=2", SHARDED, prepared=sets[method])
    run.train(processes=2)
    compare(run, whole)


@pytest.mark.parametrize(
    "changes",
    [
        ("model.quantization=nf4", "training.optimizations=false", "training.gradient_checkpointing=true"),
        ("model.quantization=int8",),
        ("adapter={kind: dora}", "training.ema={decay: 0.5}"),
        ("adapter={kind: ia3}",),
        ("adapter={kind: oft}",),
        ("training.optimizations=false",),
        (*FULL, "training.gradient_checkpointing=true", "training.ema={decay: 0.5}", "launch.offload=cpu"),
        (*FULL, "training.optimizer=adam"),
        (*FULL, "training.optimizer=sgd"),
        (*FULL, "training.optimizer=adafactor"),
        (*FULL, "training.optimizer=muon"),
        ("training.accumulation=2", "evaluation.probes=[w1 w2, w3]", "adapter={kind: lora, rank: 4, dropout: 0.1}"),
        ("adapter={kind: prompt}",),
        ("adapter={kind: prefix}",),
    ],
    ids=lambda changes: " ".join(changes)[-60:],
)
def test_settings(start_run: Callable[..., Supervised], changes: tuple[str, ...]) -> None:
    brief = ("training.max_steps=6", "evaluation.every_steps=2", "checkpoint.every_steps=4")
    whole = start_run("one", *changes, *brief)
    whole.train()
    run = start_run("two", *changes, *brief, "training.micro_batch=2", "launch.processes=2", "launch.strategy=fsdp")
    run.train(processes=2)
    compare(run, whole)


def test_resume(start_run: Callable[..., Supervised], tmp_path: Path, prepared: dict[str, Any]) -> None:
    whole = start_run("one", *FULL, *ALIKE, "training.ema={decay: 0.9}")
    whole.train()
    changes = (*FULL, *ALIKE, "training.ema={decay: 0.9}", "training.micro_batch=2", SHARDED)
    run = start_run("two", *changes)
    run.start(processes=2, fault="boundary:6")
    assert run.wait() != 0 and run.run.checkpoint_steps() == [4]
    run.train(processes=2)
    assert [(entry.step, entry.resumed) for entry in run.entries(Start)] == [(0, ""), (4, "exact")]
    compare(run, whole)
    # And from there with other ranks and another strategy.
    for ranks, strategy in ((4, "fsdp"), (2, "ddp"), (1, "ddp"), (2, "zero2")):
        other = start_run(f"{strategy}-{ranks}", *changes, f"launch={{processes: {ranks}, strategy: {strategy}}}")
        shutil.copytree(run.run.checkpoint(8), other.run.checkpoint(8))
        shutil.copy(run.run.events, other.run.events)
        other.attempts = 2
        other.train(processes=ranks)
        start = other.entries(Start)[-1]
        assert (start.step, start.processes) == (8, ranks)
        assert "read back differs" not in start.resumed, start.resumed
        print(start.resumed)
        compare(other, whole)
    # Back from an unsharded strategy.
    back = start_run("back", *changes)
    shutil.copytree(whole.run.checkpoint(8), back.run.checkpoint(8))
    shutil.copy(whole.run.events, back.run.events)
    back.attempts = 2
    back.train(processes=2)
    compare(back, whole)
