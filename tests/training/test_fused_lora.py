"""The fused LoRA layer in 16 bits, its operations, and its trial on an accelerator."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from engine.models.trials import Trials
from engine.protocol.home import Home
from engine.training import fast_paths
from engine.training.adapters import fused_lora
from tests.operations import Operations
from tests.training.test_cpu_lora import tiny

PASSES = {
    "float32": nullcontext,
    "bfloat16": partial(torch.autocast, "cpu", torch.bfloat16),
    "float16": partial(torch.autocast, "cpu", torch.float16),
}


@pytest.mark.parametrize("dtype", PASSES)
def test_a_trial_likes_what_pefts_layers_compute(dtype: str, bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trials, "_time", lambda trials, work: 1.0)
    layer = fused_lora.list_layers(tiny())[0]
    before, numbers = [weight.clone() for weight in layer.parameters()], torch.random.get_rng_state()
    verdict = fast_paths.try_fused_lora(Trials(bare_home, "cpu", "a card"), layer, "cpu", PASSES[dtype])
    assert verdict.used and verdict.difference <= (1e-6 if dtype == "float32" else 0.02), verdict
    assert dtype in verdict.name and "rank 4" in verdict.name
    assert torch.equal(numbers, torch.random.get_rng_state()), "the run's numbers do not depend on a trial"
    assert type(layer) is not fused_lora.FusedLinear and all(map(torch.equal, before, layer.parameters()))


@pytest.mark.parametrize("fault", ["raises", "wrong", "slow"])
def test_a_layer_that_fails_its_trial_stays_pefts(fault: str, bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = fused_lora.FusedLinear.forward

    def faulty(self: Any, x: Any) -> Any:
        if fault == "raises":
            raise RuntimeError("CUDA error: invalid configuration argument")
        if fault == "slow":
            time.sleep(0.05)
        return forward(self, x) * (1.1 if fault == "wrong" else 1.0)

    monkeypatch.setattr(fused_lora.FusedLinear, "forward", faulty)
    trials = Trials(bare_home, "cpu", "a card")
    verdict = fast_paths.try_fused_lora(trials, fused_lora.list_layers(tiny())[0], "cpu", nullcontext)
    assert not verdict.used and verdict.failed == (fault != "slow"), verdict
    assert trials.read(verdict.name) == verdict


@pytest.mark.parametrize(("dtype", "most"), [("float32", 26), ("bfloat16", 33)])
def test_operations_of_a_layer(dtype: str, most: int) -> None:
    """Of a forward and backward pass, views included."""
    counts = []
    for fused in (False, True):
        model = tiny()
        layer = fused_lora.list_layers(model)[0].train()
        if fused:
            fused_lora.install(model)
        given = torch.ones(1, 20, 32, requires_grad=True)
        with Operations() as counting:
            with PASSES[dtype]():
                output = layer(given)
            output.sum().backward()
        counts.append(sum(counting.counts.values()))
    assert counts[1] <= most < counts[0] - 12, counts
