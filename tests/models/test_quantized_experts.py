"""`model.quantize_experts`: fused experts in NF4, as they are stored, loaded, computed with and trained beside."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.config.profile import ProfileError, parse
from engine.models import base, quantized_experts
from engine.models.devices import Device
from engine.options.model import ModelOptions
from engine.protocol.home import Home
from engine.protocol.journal import Start
from engine.protocol.messages import ProblemError
from engine.training.adapters import lora
from tests.models.small import build
from tests.models.test_experts import FAMILIES
from tests.training.harness import PROFILE, make_model, prepare
from tests.training.here import Here, at

IDS = torch.arange(3, 20)[None]
CPU = Device("cpu", torch.float32, "CPU")


def _load(folder: Path, *, experts: bool = True, unpack: bool = False, quantization: str = "nf4") -> Any:
    options = ModelOptions(
        base=str(folder),
        dtype="float32",
        quantization=quantization,
        quantize_experts=experts,  # type: ignore[arg-type]
    )
    return base.load(str(folder), options, CPU, lambda done, total: None, unpack=unpack)


def _save(folder: Path, name: str, **changes: Any) -> Path:
    build(name, **{**FAMILIES[name], "hidden_size": 64, **changes}).save_pretrained(folder)
    return folder


def _train(model: Any) -> tuple[float, dict[str, Any]]:
    adapted = lora.attach(model, lora.Options())
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    loss = adapted(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return float(loss.detach()), {name: each.grad for name, each in adapted.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_are_packed_and_adapters_beside_them_trained(name: str, tmp_path: Path) -> None:
    folder = _save(tmp_path, name)
    packed, plain = _load(folder), _load(folder, experts=False, quantization="none")
    weights = quantized_experts.count_weights(packed)
    assert weights == sum(each.numel() for key, each in plain.named_parameters() if each.dim() == 3) > 0
    stored = sum(
        each.numel() * each.element_size() for key, each in packed.named_parameters() if "parametrizations" in key
    )
    assert stored == weights / 2
    with torch.no_grad():
        losses = [float(model(input_ids=IDS, labels=IDS).loss) for model in (packed, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)

    loss, gradients = _train(packed)
    assert all(gradient is not None for gradient in gradients.values())
    assert not [key for key in gradients if ".experts." in key and ".shared_experts." not in key]
    # Unpacked once for all, the same weights give the same numbers, bit for bit.
    unpacked = _load(folder, unpack=True)
    assert not quantized_experts.list_modules(unpacked)
    other, others = _train(unpacked)
    assert loss == pytest.approx(other, rel=1e-6) and gradients.keys() == others.keys()
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, others[key], rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_recomputed_layers_have_the_same_gradients(name: str, tmp_path: Path) -> None:
    folder = _save(tmp_path, name)
    loss, gradients = _train(_load(folder))
    model = _load(folder)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    other, others = _train(model)
    assert loss == pytest.approx(other, rel=1e-6)
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, others[key], rtol=1e-4, atol=1e-6), key


class _Live(TorchDispatchMode):
    """The bytes of all tensors that were made under it and are still there, and the most that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    @property
    def now(self) -> int:
        return sum(self.sizes.values())

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, key, None)
        self.most = max(self.most, self.now)
        return result


def test_loading_holds_one_parameter_in_full_at_a_time(tmp_path: Path) -> None:
    folder = _save(tmp_path, "qwen3_moe", num_hidden_layers=6, moe_intermediate_size=256, num_experts=8)
    with _Live() as live:
        model = _load(folder)
    one = 8 * 2 * 256 * 64 * 4
    whole = quantized_experts.count_weights(model) * 4
    assert whole > 8 * one
    assert live.most < whole / 8 + 5 * one, (live.most / one, whole / one)


def test_a_forward_pass_keeps_no_layer_unpacked(tmp_path: Path) -> None:
    folder = _save(tmp_path, "qwen3_moe", num_hidden_layers=6, moe_intermediate_size=256, num_experts=8)
    packed = lora.attach(_load(folder), lora.Options())
    whole = quantized_experts.count_weights(packed) * 4
    with _Live() as live:
        loss = packed(input_ids=IDS, labels=IDS).loss
        kept = live.now
        loss.backward()
    assert kept < whole / 4, (kept, whole)
    assert live.most < whole / 2, (live.most, whole)


def test_an_adapter_on_packed_experts_is_refused(tmp_path: Path) -> None:
    model = _load(_save(tmp_path, "qwen3_moe"))
    with pytest.raises(ProblemError) as raised:
        lora.attach(model, lora.Options(targets=["gate_proj", "up_proj", "down_proj"]))
    assert raised.value.problem.code == "adapter.unsupported" and "model.quantize_experts" in raised.value.problem.title


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    folder = _save(tmp_path / "experts", "qwen3_moe")
    dense = make_model(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((dense / name).read_bytes())
    return folder


def test_what_does_not_go_together_is_named(experts: Path, tmp_path: Path, bare_home: Home) -> None:
    on = "model.quantize_experts=true"
    for folder, quantization, wrong in (
        (experts, "nf4", ""),
        (experts, "int8", "goes with model.quantization nf4"),
        (experts, "none", "goes with model.quantization nf4"),
        (tmp_path / "dense", "nf4", "has none"),
    ):
        changes = (on, f"model.quantization={quantization}")
        try:
            found = parse(PROFILE.format(base=folder), "test", Path("/"), changes, bare_home).doubts
            assert not wrong and not found
        except ProfileError as error:
            assert wrong and wrong in str(error)
    plain = parse(PROFILE.format(base=experts), "test", Path("/"), ("model.quantization=nf4",), bare_home)
    assert any("model.quantize_experts" in str(doubt) for doubt in plain.doubts)


@pytest.mark.parametrize("optimizations", ["true", "false"])
def test_a_run_on_packed_experts_resumes_exactly(experts: Path, tmp_path: Path, optimizations: str) -> None:
    prepared = prepare(tmp_path / "rows", experts)
    settings = ("model.quantization=nf4", "model.quantize_experts=true", f"training.optimizations={optimizations}")
    settings = (*settings, "training.epochs=2", "training.micro_batch=9", "checkpoint.every_steps=3")
    whole = Here(tmp_path, "whole", prepared, *settings)
    assert whole.train() == ("completed", 6)
    broken = Here(tmp_path, "broken", prepared, *settings)
    broken.train(orders=at(3, "stop"))
    assert broken.train() == ("completed", 6)
    assert broken.entries(Start)[-1].resumed == "exact"
    assert broken.series("train/loss") == whole.series("train/loss")
    losses = list(whole.series("train/loss").values())
    assert losses[-1] < losses[0]


def test_chat_loads_the_experts_as_the_run_has_trained_on_them(experts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from engine.inference import load
    from engine.models.template_lock import hash_template

    settings = ("model.quantization=nf4", "model.quantize_experts=true", "training.max_steps=1")
    prepared = prepare(tmp_path / "rows", experts)
    prepared["lock"]["template_sha256"] = hash_template(AutoTokenizer.from_pretrained(experts))
    run = Here(tmp_path, "run", prepared, *settings)
    run.train()
    loaded = load(str(run.run.checkpoint(1)), home=Home(tmp_path))
    assert loaded.chat("w1 w2", max_new_tokens=4).tokens <= 4
    weights = {
        name: weight for name, weight in loaded.model.named_parameters() if name.endswith("mlp.experts.down_proj")
    }
    assert weights
    for weight in weights.values():  # unpacked on a CPU, to the 16 values that a block of 64 has
        blocks = weight.detach().reshape(-1, 64)
        assert max(len(block.unique()) for block in blocks) <= 16
    stored = next(value for name, value in load_file(experts / "model.safetensors").items() if "down_proj" in name)
    assert len(stored.reshape(-1, 64)[0].unique()) > 16
