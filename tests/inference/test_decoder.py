"""What a decoded token costs with an adapter, counted in operations, and that it stays right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.inference import decoder
from engine.inference.decoder import LowRank, make_decoder
from engine.inference.merged_decode import merge_weights

VIEWS = ("view", "transpose", "t", "slice", "unsqueeze", "squeeze", "expand", "alias", "select", "detach", "as_strided")


class Launches(TorchDispatchMode):  # type: ignore[misc]
    """Counts the operations that a device would be given; views cost it nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__.lstrip("_")
        if name.removeprefix("unsafe_") not in VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def count_launches(model: Any) -> Counter[str]:
    """The operations of one token behind a prompt. In inference mode, composite ones would hide their parts."""
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
        with Launches() as counted:
            model(input_ids=IDS[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    found: Counter[str] = counted.counts
    return found


IDS = torch.tensor(
    [[504, 3575, 282, 4649, 314, 7042, 28, 281, 260, 4081, 282, 260, 1798, 30, 378, 4626, 1268, 462, 1798]]
)
"""The capital of France is Paris, in the north of the country"""


@pytest.fixture(scope="module")
def base(whole_smollm2: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(whole_smollm2, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def plain(base: Any) -> Counter[str]:
    return count_launches(base)


def wrap(base: Any) -> Any:
    """The base with an adapter in float32, as chat has it, whose update is of a size that training makes."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    for name, weight in model.named_parameters():
        if "lora" in name:
            weight.data = weight.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def adapted(base: Any, plain: Any) -> Any:
    return wrap(base)


@pytest.fixture
def small() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=9000, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def log_probabilities(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=IDS).logits[0].float().log_softmax(-1)


def divergence(expected: Any, found: Any) -> float:
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def test_a_merged_adapter_costs_no_operation(adapted: Any, plain: Counter[str]) -> None:
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    assert plain.total() <= 1225
    assert count_launches(adapted).total() > 2.0 * plain.total(), "what peft's layers cost"
    merged = make_decoder(adapted)
    assert count_launches(merged) == plain
    assert all(torch.equal(before[name], weight) for name, weight in adapted.named_parameters())


def test_an_adapter_that_is_not_merged_costs_two_products_in_the_dtype_of_the_base(
    adapted: Any, plain: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "has_room", lambda layers: False)
    low = make_decoder(adapted)
    layers = sum(isinstance(module, LowRank) for module in low.modules())
    found = count_launches(low)
    assert layers == 210 and found.total() == plain.total() + 2 * layers <= 1645
    assert found["to_copy"] == plain["to_copy"], "nothing is converted"


@pytest.mark.slow
def test_replies_are_those_of_the_adapter_but_for_rounding(adapted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The divergence from float32 is about that of bfloat16 itself, and far below the adapter's own."""
    made = {}
    for name, room in (("merged", True), ("unmerged", False)):
        monkeypatch.setattr(decoder, "has_room", lambda layers, room=room: room)
        made[name] = log_probabilities(make_decoder(adapted))
    peft = log_probabilities(adapted)
    with adapted.disable_adapter():
        without = log_probabilities(adapted)
    adapted.float()
    try:
        exact = log_probabilities(adapted)
    finally:
        for name, weight in adapted.named_parameters():
            weight.data = weight.data if "lora" in name else weight.data.bfloat16()
    rounding, effect = divergence(exact, peft), divergence(exact, without)
    ours = {name: divergence(exact, found) for name, found in made.items()}
    print(f"KL: peft in bfloat16 {rounding:.2g}, here {ours}, without the adapter {effect:.2g}")
    assert max(ours.values()) < 3 * rounding and effect > 20 * max(ours.values())


def test_in_float32_nothing_changes(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrap(small)
    expected = log_probabilities(wrapped)
    with merge_weights(wrapped) as merged:
        assert merged and torch.allclose(log_probabilities(wrapped), expected, atol=1e-5)
    assert torch.equal(log_probabilities(wrapped), expected)
    for room in (True, False):
        monkeypatch.setattr(decoder, "has_room", lambda layers, room=room: room)
        made = make_decoder(wrapped)
        assert any(isinstance(module, LowRank) for module in made.modules()) is not room
        assert torch.allclose(log_probabilities(made), expected, atol=1e-5)


def test_several_adapters_are_merged_together(small: Any) -> None:
    wrapped = wrap(small)
    wrapped.add_adapter("other", wrapped.peft_config["default"])
    for name, weight in wrapped.named_parameters():
        if "lora_B.other" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wrapped.base_model.set_adapter(["default", "other"])
    expected = log_probabilities(wrapped)
    assert torch.allclose(log_probabilities(make_decoder(wrapped)), expected, atol=1e-5)
    low = LowRank.of(next(module for module in wrapped.modules() if hasattr(module, "lora_A")), torch.float32)
    assert low.down.shape[0] == 16


@pytest.mark.parametrize("kind", ["bias", "dora", "embedding", "ia3"])
def test_what_cannot_be_merged_computes_as_before(small: Any, kind: str) -> None:
    """A bias of the adapter, magnitudes, an embedding's update, factors instead of products."""
    from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model

    targets = ["q_proj", "down_proj"]
    configs: dict[str, PeftConfig] = {
        "bias": LoraConfig(r=4, target_modules=targets, lora_bias=True, task_type="CAUSAL_LM"),
        "dora": LoraConfig(r=4, target_modules=targets, use_dora=True, task_type="CAUSAL_LM"),
        "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
        "ia3": IA3Config(target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    }
    torch.manual_seed(0)
    wrapped = get_peft_model(small, configs[kind]).eval()
    before = log_probabilities(wrapped)
    for name, weight in wrapped.named_parameters():
        if any(part in name for part in ("lora", "ia3")):
            torch.nn.init.normal_(weight, std=0.3)
    expected = log_probabilities(wrapped)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert torch.allclose(log_probabilities(make_decoder(wrapped)), expected, atol=1e-5)
    with merge_weights(wrapped):
        assert torch.allclose(log_probabilities(wrapped), expected, atol=1e-5)


@pytest.mark.slow
def test_a_model_in_training_merges_16_bits_for_replies_alone(adapted: Any, plain: Counter[str]) -> None:
    with merge_weights(adapted) as merged:
        assert not merged
    expected = log_probabilities(adapted)
    with merge_weights(adapted, rounded=True) as merged:
        assert merged and count_launches(adapted) == plain
    assert torch.equal(log_probabilities(adapted), expected)


def test_memory_that_runs_out_while_merging_leaves_the_rest_unmerged(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = wrap(small)
    merge, calls = decoder._merge, []

    def scarce(layer: Any) -> Any:
        calls.append(layer)
        if len(calls) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return merge(layer)

    expected = log_probabilities(adapted)
    monkeypatch.setattr(decoder, "_merge", scarce)
    found = make_decoder(adapted)
    assert sum(isinstance(module, LowRank) for module in found.modules()) == 6
    assert torch.allclose(expected, log_probabilities(found), atol=1e-5)


def test_a_model_that_is_spread_by_accelerate_is_merged_too(small: Any) -> None:
    """Its hooks move values between devices; a copy has its own, and the model keeps those that it had."""
    from accelerate import dispatch_model

    wrapped = wrap(small)
    expected = log_probabilities(wrapped)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu", "model.norm": "cpu"}
    dispatch_model(small, places | {"model.rotary_emb": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    made = make_decoder(wrapped)
    assert torch.allclose(log_probabilities(made), expected, atol=1e-5)
    for ours, theirs in zip(made.model.layers, small.model.layers, strict=True):
        assert ours is not theirs and ours._hf_hook is theirs._hf_hook and ours.forward.args[0] is ours
        assert theirs.forward.args[0] is theirs
    small.model.layers[0].forward = None
    assert torch.allclose(log_probabilities(made), expected, atol=1e-5), "and nothing of the model is called"
