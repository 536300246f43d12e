"""Liger's kernels are used only where they prove themselves. Here a module without kernels stands in their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from engine.models.trials import Trials
from engine.protocol.home import Home
from engine.training import liger


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
    )  # fmt: skip


def norms(change: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
    """An `install` that computes the norms in another way."""

    def install(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = lambda values, plain=module.forward: change(plain, values)

    return install


def fail(plain: Any, values: Any) -> Any:
    raise RuntimeError("Triton Error [CUDA]: invalid device function")


def dawdle(plain: Any, values: Any) -> Any:
    time.sleep(0.02)
    return plain(values)


@pytest.mark.parametrize(
    ("change", "demanded", "used", "failed"),
    [
        (lambda plain, values: plain(values), True, True, False),
        (fail, True, False, True),
        (lambda plain, values: plain(values) * 1.2, True, False, True),
        (dawdle, False, False, False),
        (dawdle, True, True, False),
    ],
    ids=["right", "raises", "wrong", "slow", "slow and demanded"],
)
def test_kernels_are_tried(
    change: Any, demanded: bool, used: bool, failed: bool, model: Any, bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liger, "install", norms(change))
    before, number = torch.random.get_rng_state(), len(list(model.modules()))
    trials = Trials(bare_home, "cpu", "a card")
    verdict = liger.try_kernels(trials, model, "cpu", nullcontext, demanded=demanded)
    assert (verdict.used, verdict.failed) == (used, failed), verdict
    assert "llama 32 wide" in verdict.name and trials.read(verdict.name) == verdict
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(list(model.modules())) == number and model.config.num_hidden_layers == 2
