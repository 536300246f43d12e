"""What makes LoRA quick on a CPU must compute what peft computes, and leave no trace."""

from __future__ import annotations

from typing import Any

import pytest


def tiny(dropout: float = 0.0) -> Any:
    """A two-layer Llama with LoRA on all its linear layers, B not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    return get_peft_model(model, config)


def gradients(model: Any, autocast: bool) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of one batch; the same dropout for every caller."""
    import torch

    from engine.training import dropout

    dropout.install(model)
    model.train()
    model.zero_grad()
    ids = torch.arange(1, 41).view(2, 20)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_fused_layer_computes_what_pefts_does(rate: float, autocast: bool) -> None:
    import torch

    from engine.training.adapters import fused_lora

    loss, expected = gradients(tiny(rate), False)
    _, rounded = gradients(tiny(rate), autocast)
    model = tiny(rate)
    fused_lora.install(model)
    fused_loss, found = gradients(model, autocast)
    assert sum(isinstance(layer, fused_lora.FusedLinear) for layer in model.modules()) == 14
    assert fused_loss == pytest.approx(loss, rel=0.02 if autocast else 1e-6)
    assert expected.keys() == found.keys() and len(found) == 28
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype == torch.float32
        error = (found[name] - gradient).norm()
        theirs = (rounded[name] - gradient).norm()  # peft's own rounding, in 16 bits
        assert error < (1.5 * theirs if autocast else 1e-5 * gradient.norm()), name


def test_the_fused_layer_leaves_everything_else_to_peft() -> None:
    import torch

    from engine.training.adapters import fused_lora

    model, ids = tiny(), torch.arange(1, 9)[None]
    fused_lora.install(model)
    with torch.no_grad():
        training = model.train()(input_ids=ids).logits
        evaluated = model.eval()(input_ids=ids).logits
        with model.disable_adapter():
            bare = model.train()(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    assert torch.allclose(training, evaluated, atol=1e-5) and torch.allclose(training, merged, atol=1e-5)
    assert not torch.allclose(training, bare, atol=1e-3)


def test_folding_computes_the_same_and_leaves_no_trace() -> None:
    import torch

    from engine.inference.merged_decode import merge_weights
    from engine.training.adapters import fused_lora

    model, ids = tiny(0.3), torch.arange(1, 21).view(2, 10)
    fused_lora.install(model)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    loss, expected = gradients(model, False)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        with merge_weights(model):
            assert model.base_model.model.lm_head.weight.stride() == (1, 61)
            down = model.base_model.model.model.layers[1].mlp.down_proj
            assert down.merged and down.get_base_layer().weight.stride() == (1, 32)
            assert torch.allclose(model(input_ids=ids).logits, logits, atol=1e-5)
        with pytest.raises(KeyError), merge_weights(model):
            raise KeyError
    assert not down.merged
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    for name, (address, values) in before.items():
        assert after[name].data_ptr() == address and torch.equal(after[name], values), name
    again, found = gradients(model, False)
    assert again == loss and all(torch.equal(found[name], expected[name]) for name in expected)


def test_folding_keeps_away_from_what_is_not_float32() -> None:
    import torch

    from engine.inference.merged_decode import merge_weights

    model = tiny().to(torch.bfloat16)
    down = model.base_model.model.model.layers[0].mlp.down_proj
    with merge_weights(model):
        assert not down.merged and down.get_base_layer().weight.is_contiguous()
