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


@pytest.mark.parametrize("right", [True, False])
def test_a_trial_leaves_no_names_replaced(
    right: bool, model: Any, bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liger replaces the function for rotary positions in transformers' module, for all models of the process."""
    from transformers.models.llama import modeling_llama

    rotate = modeling_llama.apply_rotary_pos_emb

    def install(model: Any) -> None:
        def replaced(query: Any, key: Any, *named: Any, **more: Any) -> Any:
            return rotate(query, key, *named, **more) if right else (query * 3, key)

        modeling_llama.apply_rotary_pos_emb = replaced

    monkeypatch.setattr(liger, "install", install)
    verdict = liger.try_kernels(Trials(bare_home, "cpu", "a card"), model, "cpu", nullcontext, demanded=True)
    assert verdict.used == right and modeling_llama.apply_rotary_pos_emb is rotate


def test_a_model_whose_layer_cannot_be_made_alone_keeps_its_own(
    model: Any, bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("Unrecognized configuration class for this kind of AutoModel")

    monkeypatch.setattr(liger, "_make_layer", fail)
    told: list[Any] = []
    trials = Trials(bare_home, "cpu", "a card", told.append)
    for _ in range(2):
        assert not liger.try_kernels(trials, model, "cpu", nullcontext, demanded=True).used
    assert len(told) == 1 and "Unrecognized" in told[0].reason
