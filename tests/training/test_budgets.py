"""What a step may cost: numbers that a CPU can count, and that decide the speed on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config.profile import parse
from engine.options.training import TrainingOptions
from engine.protocol.home import Home
from engine.training import doubts, performance
from engine.training.loop import TrainingLoop
from engine.training.methods.base import Method
from tests.operations import READ, Operations
from tests.training.harness import PROFILE
from tests.training.in_process import train


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Counter[str]]:
    """The operations of each call of a method."""
    found: list[Counter[str]] = []
    original: Callable[..., Any] = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        with Operations() as counting:
            result = original(*given, **named)
        found.append(counting.counts)
        return result

    monkeypatch.setattr(owner, name, counted)
    return found


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_reads_two_numbers_whatever_its_micro_batches(
    accumulation: int, prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss, which the ranks vote on, and the norm, by which a bad batch is held back."""
    steps = count_calls(monkeypatch, TrainingLoop, "train_step")
    updates = count_calls(monkeypatch, torch.optim.AdamW, "step")
    rows = ("training.micro_batch=2", f"training.accumulation={accumulation}")
    train(Home(tmp_path), "run", prepared, "training.max_steps=3", "training.warmup=0", *rows)
    # An update reads its own counters, which a CPU keeps.
    assert [step[READ] - update[READ] for step, update in zip(steps, updates, strict=True)] == [2, 2, 2]


def test_operations_of_a_layer_and_row(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward and backward passes of two layers with LoRA on seven linear layers each."""
    gradients = count_calls(monkeypatch, TrainingLoop, "compute_gradients")
    train(Home(tmp_path), "run", prepared, "training.max_steps=2", "training.micro_batch=4", "training.accumulation=1")
    operations = sum(gradients[-1].values())
    assert 500 < operations < 680, gradients[-1].most_common(12)


def test_batches_for_a_gpu_are_pinned_and_copied_without_waiting() -> None:
    method = SimpleNamespace(rows=[0, 1], collate=list)
    for kind, pinned in (("cuda", True), ("cpu", False)):
        assert performance.make_loader(TrainingOptions(workers=0), kind, 1, method, [[0]]).pin_memory is pinned
    asked: list[Any] = []
    tensor = SimpleNamespace(to=lambda *given, **named: asked.append((given, named)))
    there = SimpleNamespace(device=SimpleNamespace(name="cuda:1"))
    there._move = lambda value: Method._move(there, value)  # type: ignore[arg-type]
    there.to_device = lambda batch: Method.to_device(there, batch)  # type: ignore[arg-type]
    Method.to_device(there, {"ids": tensor, "others": {"ids": tensor}, "lengths": [1]})  # type: ignore[arg-type]
    assert asked == [(("cuda:1",), {"non_blocking": True})] * 2


@pytest.mark.parametrize(
    ("kind", "lengths", "changes", "hint"),
    [
        ("cuda", [100, 150], ("training.micro_batch=2", "training.accumulation=4"), "training.micro_batch to 8"),
        ("cuda", [100, 150], ("training.micro_batch=2", "training.accumulation=1"), "data.packing"),
        ("cuda", [100, 150], ("training.micro_batch=9",), ""),
        ("cpu", [100, 150], ("training.micro_batch=2",), ""),
    ],
)
def test_small_micro_batches_are_told_where_a_device_would_wait(
    kind: str, lengths: list[int], changes: tuple[str, ...], hint: str, prepared: dict[str, Any], bare_home: Home
) -> None:
    profile = parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), changes, bare_home)
    message, told = doubts.describe_small_batches(profile, kind, lengths)
    assert (hint in told and "about 250 tokens" in message) if hint else (message, told) == ("", "")
