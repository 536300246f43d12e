"""Bases of experts: routers are not trained unless they are named, and what stays in 16 bits is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.profile import parse
from engine.models import limits
from engine.protocol.home import Home
from engine.training.adapters import lora
from engine.training.adapters.base import find_routers
from tests.models.small import EXPERTS, build
from tests.training.harness import PROFILE, make_model

ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
          "first_k_dense_replace": 1}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [],
                  "sliding_window": None},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [],
                  "shared_expert_intermediate_size": 16, "sliding_window": None},
    "mixtral": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek_v3": {**ROUTED, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                    "v_head_dim": 16, "num_key_value_heads": 4},
    "glm4_moe": {**ROUTED, "n_shared_experts": 1},
    "llama4_text": {"num_local_experts": 2, "num_experts_per_tok": 1, "attention_chunk_size": 16,
                    "intermediate_size_mlp": 48, "sliding_window": None},
}  # fmt: skip


WITHOUT = ("qwen2_moe", "gpt_oss", "llama4_text")
"""Families whose fused experts peft does not adapt."""


@pytest.mark.parametrize("name", FAMILIES)
def test_no_router_is_trained_unless_it_is_named(name: str) -> None:
    model = build(name, **FAMILIES[name])
    routers = find_routers(model)
    assert routers and not any(
        "expert" in each.rpartition(".")[2].replace("shared_expert_gate", "") for each in routers
    )
    adapted = lora.attach(model, lora.Options())
    trained = [each for each, weight in adapted.named_parameters() if weight.requires_grad]
    assert any("self_attn.q" in each for each in trained)
    assert any(".experts." in each for each in trained) or name in WITHOUT
    assert not [each for each in trained if any(f".{router}." in each for router in routers)]
    loss = adapted(input_ids=torch.arange(3, 12)[None]).logits.float().square().mean()
    loss.backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad and weight.dim() > 1)


def test_a_router_that_is_named_is_trained() -> None:
    adapted = lora.attach(build("mixtral", **EXPERTS), lora.Options(targets=["gate", "q_proj"]))
    assert any(".mlp.gate." in each for each, weight in adapted.named_parameters() if weight.requires_grad)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = build("qwen3_moe", **FAMILIES["qwen3_moe"])
    model.save_pretrained(tmp_path / "experts")
    return tmp_path / "experts"


def test_the_weights_of_experts_are_counted(base: Path) -> None:
    experts, weights = limits.count_expert_weights(base)
    assert experts == 4 * 4 * 3 * 32 * 16 and weights > experts


def test_quantising_a_base_of_experts_says_what_stays_in_16_bits(base: Path, tmp_path: Path, bare_home: Home) -> None:
    dense = make_model(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((dense / name).read_bytes())
    text = PROFILE.format(base=base)
    for quantization, told in (("none", False), ("nf4", True), ("int8", True)):
        found = parse(text, "test", Path("/"), (f"model.quantization={quantization}",), bare_home).doubts
        assert any("leaves the experts in" in doubt.message for doubt in found) == told, (quantization, found)
