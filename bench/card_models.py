"""Models with random weights, made on the device itself, and what their training costs in operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama, the lengths in tokens of its longest rows, and how long things are measured."""

    name: str
    config: dict[str, Any]
    lengths: tuple[int, ...]
    tokens: int
    """Tokens of a micro-batch of whole rows."""
    steps: int
    """Optimiser steps of a measurement, the first of which is not counted."""
    decoded: int
    prompt: int
    square: int
    """Side of the matrices whose product gives the device's peak."""


LLAMA_8B = Shape(
    "Llama 3 8B",
    {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16384, "rope_theta": 500000.0,
    },
    (2048, 8192), 8192, 5, 128, 512, 8192,
)  # fmt: skip
TINY = Shape(
    "tiny",
    {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "rope_theta": 10000.0,
    },
    (64, 256), 256, 4, 16, 32, 512,
)  # fmt: skip


def make_folder(folder: Path, shape: Shape) -> Path:
    """A base without weights: its config, and a tokenizer of a few words."""
    from transformers import LlamaConfig

    from tests.training.harness import make_model

    make_model(folder)
    (folder / "model.safetensors").unlink()
    config = LlamaConfig(**shape.config, pad_token_id=0, eos_token_id=1, bos_token_id=None, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def build(folder: Path, device: str, quantization: str = "none", attention: str | None = None) -> Any:
    """The base of `folder` with random weights in bfloat16, or quantised from such."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    more = {"attn_implementation": attention} if attention else {}
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16, **more)
    if quantization == "nf4":
        _quantize(model, device)
    model.name_or_path = str(folder)
    return model


def _quantize(model: Any, device: str) -> None:
    """Do what transformers does as it loads a model in NF4, on weights that are there already."""
    import bitsandbytes as bnb
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    from engine.models.quantization import quantization_config

    head = model.get_output_embeddings()
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)]
    for name, layer in layers:
        if layer is head:
            continue
        packed = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        packed.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=packed
        ).to(device)
        model.set_submodule(name, packed)
    wanted = quantization_config("nf4", "bfloat16")
    model.config.quantization_config = wanted
    model.hf_quantizer = AutoHfQuantizer.from_config(wanted, pre_quantized=False)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = wanted.quant_method


def make_rows(shape: Shape, longest: int) -> list[list[int]]:
    """Rows between half of `longest` and all of it: one micro-batch for each step."""
    import random

    numbers = random.Random(longest)
    count = shape.steps * shape.tokens // longest
    vocabulary = shape.config["vocab_size"]
    return [
        [numbers.randrange(4, vocabulary) for _ in range(numbers.randrange(longest // 2, longest + 1))]
        for _ in range(count)
    ]


def count_operations(shape: Shape, rows: list[list[int]], *, weights: int) -> float:
    """Operations of training for each token, on average over the rows: `weights` (6 for PaLM, appendix B) for each
    weight of a matrix, and 12 × layers × width × length for attention."""
    config = shape.config
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
    matrices = layers * (2 * width * width + 2 * width * keys + 3 * width * inner) + width * config["vocab_size"]
    lengths = [len(row) for row in rows]
    per_token: float = weights * matrices + 12 * layers * width * sum(each**2 for each in lengths) / sum(lengths)
    return per_token
