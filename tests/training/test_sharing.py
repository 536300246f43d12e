"""`launch.strategy: zero1`: the numbers of `ddp`, with the optimiser's states shared out between the ranks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.journal import Start
from engine.training.parallel.zero1 import OptimizerShards, assign_owners
from tests.training import warm
from tests.training.harness import Supervised
from tests.training.here import Here, at

FULL = (
    "adapter={kind: none}",
    "training.epochs=2",
    "training.micro_batch=1",
    "training.accumulation=2",
    "training.weight_decay=0.1",
    "training.max_grad_norm=0.5",
    "training.ema={decay: 0.9}",
    "checkpoint.every_steps=4",
    "checkpoint.keep=20",
    "launch.processes=2",
)
LOSSES = ("train/loss", "train/grad_norm", "train/learning_rate")


def test_weights_are_dealt_by_size() -> None:
    assert assign_owners([1, 8, 3, 4, 2], 2) == [0, 0, 1, 1, 1]
    assert assign_owners([5, 5, 5], 4) == [0, 1, 2]  # the fourth has none
    sizes = [size % 97 for size in range(1000)]
    owners = assign_owners(sizes, 8)
    shares = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(8)]
    assert max(shares) - min(shares) <= 1


# ── one optimiser after another, on two ranks without a trainer ──────────────────────────────────────────────────────


def _walk(weights: list[Any], optimizer: Any, steps: range) -> None:
    """Gradients are the same on all ranks, as they are once they have been added up."""
    import torch

    for step in steps:
        for index, weight in enumerate(weights):
            weight.grad = None if step == 1 and index % 3 == 0 else torch.cos(weight.detach() * (step + 1) + index)
        optimizer.step()


def _made(name: str) -> tuple[list[Any], Any]:
    """Weights of several shapes and dtypes, the same every time, and their optimiser."""
    import torch
    from transformers.optimization import Adafactor

    from engine.training.muon import MuonAdamW

    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(64, 32), (32, 32), (32, 64), (48, 32), (32,), (32,), (64, 32), (32, 40), (5, 1)]
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    weights.append(torch.nn.Parameter(torch.randn(32, dtype=torch.bfloat16)))
    groups: list[dict[str, Any]] = [
        {"params": weights[:4], "weight_decay": 0.1, "matrices": True},
        {"params": weights[4:], "weight_decay": 0.0, "matrices": False},
    ]
    made: dict[str, Callable[[], Any]] = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.01, fused=True),
        "adam": lambda: torch.optim.Adam(groups, lr=0.01),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.01),
        "adafactor": lambda: Adafactor(groups, lr=0.01, scale_parameter=False, relative_step=False),
        "muon": lambda: MuonAdamW(groups, 0.01),
    }
    return weights, made[name]()


def _elements(optimizer: Any) -> int:
    return sum(
        value.numel() for state in optimizer.state.values() for value in state.values() if hasattr(value, "numel")
    )


def _compare(folder: Path) -> None:
    """On one of two ranks: each optimiser with and without shares; what was found is asserted here and fails the
    process."""
    import torch

    torch.set_num_threads(1)
    from engine.training import ranks as meeting

    ranks = meeting.join_ranks("cpu")
    for name in ("adamw", "adam", "sgd", "adafactor", "muon"):
        alone, whole = _made(name)
        weights, optimizer = _made(name)
        shares = OptimizerShards(optimizer, ranks)
        _walk(alone, whole, range(3))
        _walk(weights, optimizer, range(3))
        assert all(torch.equal(one, other) for one, other in zip(alone, weights, strict=True)), name
        held, total = _elements(optimizer), _elements(whole)
        assert abs(held - total / 2) < 0.15 * total or total == 0, (name, held, total)
        assert ranks.sum([held]) == [total], name
        state, file = shares.gather_state(), folder / f"{name}.pt"
        if ranks.first:
            expected = whole.state_dict()
            torch.testing.assert_close(state["state"], expected["state"], rtol=0, atol=0)
            assert state["param_groups"] == expected["param_groups"]
            torch.save(state, file)
        else:
            assert state == {}
        ranks.broadcast(None)
        # Going on from the file: shared as before, and by one alone.
        for shared in (True, False):
            again, other = _made(name)
            for weight, kept in zip(again, weights, strict=True):
                weight.data.copy_(kept.data)
            if shared:
                OptimizerShards(other, ranks).load(torch.load(file, weights_only=True))
                assert _elements(other) == held, name
            else:
                other.load_state_dict(torch.load(file, weights_only=True))
            _walk(again, other, range(3, 5))
            if shared:
                _walk(alone, whole, range(3, 5))
            assert all(torch.equal(one, two) for one, two in zip(alone, again, strict=True)), (name, shared)


@pytest.mark.slow
def test_every_optimiser_moves_the_weights_alike_and_holds_its_half(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = warm.start(["tests.training.test_sharing", str(tmp_path)], 2, environment, log)
    assert ranks.wait() == 0, log.read_text()
    assert {file.stem for file in tmp_path.glob("*.pt")} == {"adamw", "adam", "sgd", "adafactor", "muon"}


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _weights(run: Supervised, step: int) -> bytes:
    return (run.run.checkpoint(step) / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_is_that_of_ddp_and_goes_on_exactly(
    start_run: Callable[..., Supervised], tmp_path: Path, prepared: dict[str, Any]
) -> None:
    import torch

    whole = start_run("ddp", *FULL)
    whole.train(processes=2)
    run = start_run("zero1", *FULL, "launch.strategy=zero1")
    run.start(processes=2, fault="compute:6")
    assert run.wait() != 0 and run.run.checkpoint_steps() == [4]
    run.start(processes=2, fault="weigh")
    assert run.wait() == 0, run.log()
    assert [(entry.step, entry.resumed) for entry in run.entries(Start)] == [(0, ""), (4, "exact")]
    for name in LOSSES:
        assert run.series(name) == whole.series(name), name
    assert any(norm and norm > 0.5 for norm in whole.series("train/grad_norm").values())  # something was clipped
    for step in whole.run.checkpoint_steps():
        ours, theirs = (each.run.checkpoint(step) / "trainer" for each in (run, whole))
        assert (ours / "fingerprint.json").read_bytes() == (theirs / "fingerprint.json").read_bytes()
        found, wanted = (torch.load(folder / "optimizer.pt", weights_only=True) for folder in (ours, theirs))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert _weights(run, step) == _weights(whole, step)
    last = whole.run.checkpoint_steps()[-1]
    total = sum(value.numel() for state in wanted["state"].values() for value in state.values())
    held = [json.loads((run.run.path / f"weighed-{rank}.json").read_text()) for rank in range(2)]
    assert sum(held) == total and abs(held[0] - held[1]) < 0.05 * total

    # And one process alone takes up what two have left.
    alone = Here(tmp_path, "one", prepared, *FULL)
    shutil.copytree(run.run.checkpoint(8), alone.run.checkpoint(8))
    shutil.copy(run.run.events, alone.run.events)
    alone.attempts = 2
    alone.train("launch.processes=1", "launch.strategy=zero1", f"training.max_steps={last}", orders=at(10, "stop"))
    start = alone.entries(Start)[-1]
    assert (start.step, start.processes) == (8, 1)
    assert "ranks 2 → 1" in start.resumed and "read back differs" not in start.resumed
    assert alone.run.checkpoint_steps() == [8, 10]


if __name__ == "__main__":  # one of the ranks of test_every_optimiser_moves_the_weights_alike_and_holds_its_half
    _compare(Path(sys.argv[1]))


# ── sending gradients ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_bucket_is_under_way_while_one_is_waited_for() -> None:
    import torch

    from engine.training.parallel.reduction import send_in_buckets

    told: list[str] = []

    class Work:
        def __init__(self, number: int, flat: Any) -> None:
            self.number, self.flat = number, flat

        def wait(self) -> None:
            told.append(f"wait {self.number}")
            self.flat.mul_(2)  # as of two ranks with the same gradients

    def collective(flat: Any, *, async_op: bool) -> Work:
        assert async_op
        number = sum(each.startswith("send") for each in told)
        told.append(f"send {number}")
        return Work(number, flat)

    tensors = [torch.full((100,), float(number)) for number in range(8)]
    send_in_buckets(tensors, collective, bucket=800)
    assert told == ["send 0", "send 1", "wait 0", "send 2", "wait 1", "send 3", "wait 2", "wait 3"]
    assert [float(tensor.mean()) for tensor in tensors] == [2.0 * number for number in range(8)]
    told.clear()
    send_in_buckets(tensors, collective, write=False, bucket=800)
    assert len(told) == 8 and float(tensors[1].mean()) == 2.0
