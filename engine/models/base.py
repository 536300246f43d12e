"""Loads the base model for training, in every dtype and quantisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from engine.models import tokenizers
from engine.models.devices import Device
from engine.models.loading import load_model, load_reward_model
from engine.models.memory import is_out_of_memory
from engine.options.model import ModelOptions
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

Progress = Callable[[int, int], None]
"""`(done, total)` tensors loaded."""


def load(
    folder: str, options: ModelOptions, device: Device, progress: Progress, *, unpack: bool = True, scores: bool = False
) -> Any:
    """Load the base on `device`, its floating-point tensors in the dtype that is computed in.

    `unpack` allows NF4 weights on a CPU to be unpacked once. With `scores` the model ends in one number instead of a
    vocabulary; that layer is random where the folder has none. Raises ProblemError.
    """
    import torch
    from transformers.utils import logging

    from engine.models.quantization import quantization_config

    before = logging.set_tqdm_hook(lambda factory, args, kwargs: _Bar(factory(*args, **kwargs), args[0], progress))
    try:
        model = (load_reward_model if scores else load_model)(
            folder,
            dtype=getattr(torch, options.dtype),
            quantization_config=quantization_config(
                options.quantization, options.dtype, experts=options.quantize_experts
            ),
            attn_implementation=None if options.attention == "auto" else options.attention,
            trust_remote_code=options.trust_remote_code,
            device_map={"": device.name},
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise ProblemError(
            Problem(
                code="model.unloadable",
                title=f"{folder} cannot be loaded",
                cause=first_lines(error),
                hint=f"cockpit model verify {folder}",
            )
        )
    finally:
        logging.set_tqdm_hook(before)
    if device.kind == "cpu" and hasattr(model, "hf_device_map"):
        del (
            model.hf_device_map
        )  # with a map, even of one entry, the trainer takes the model for one that is spread over devices
    if device.kind == "cpu" and options.quantization == "nf4":
        keep_nf4_trainable(model, device, unpack=unpack)
    cast(model, device.compute)
    return model


class _Bar:
    """A tqdm bar that also reports progress, at most twice a second."""

    def __init__(self, bar: Any, items: Any, progress: Progress) -> None:
        self._bar, self._items, self._progress = bar, items, progress

    def __iter__(self) -> Iterator[Any]:
        reported = time.monotonic()
        for done, item in enumerate(self._bar):
            if time.monotonic() - reported > 0.5:
                reported = time.monotonic()
                self._progress(done, len(self._items))
            yield item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def cast(model: Any, dtype: Any) -> None:
    """Convert 16-bit weights to the dtype that is computed in, which changes no value. Packed weights stay as they
    are."""
    import torch

    if dtype != torch.float32:
        return
    if getattr(model, "packed_experts", False):
        from engine.models import quantized_experts

        quantized_experts.set_dtype(model, dtype)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()


def keep_nf4_trainable(model: Any, device: Device, *, unpack: bool = True) -> None:
    """Make NF4 layers on a CPU trainable and fast.

    bitsandbytes unpacks a 4-bit weight in every forward and backward pass. With `unpack`, and where there is enough
    memory, it is unpacked once instead; the products are bit for bit the same. Otherwise bitsandbytes must not repack
    the weight for inference: in version 0.50 it then has no backward pass, and adapters below would silently learn
    nothing.
    """
    import bitsandbytes as bnb
    import torch

    from engine.models import quantized_experts

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)]
    weights = sum(layer.in_features * layer.out_features for _, layer in layers)
    size = (weights + quantized_experts.count_weights(model)) * device.compute.itemsize
    if not unpack or size > psutil.virtual_memory().available / 4:
        for _, layer in layers:
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype = device.compute
        return
    for name, layer in layers:
        layer.weight.quant_state.dtype = device.compute  # the dtype that each product would unpack to
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    quantized_experts.unpack_all(model, device.compute)


def load_tokenizer(folder: str, trust_remote_code: bool, template: str | None) -> Any:
    """Load the tokenizer in the base's folder, with the chat template `template` unless it is None. Without a padding
    token, the end token pads."""
    found = tokenizers.load(folder, trust_remote_code)
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    if template is not None:
        found.chat_template = template
    return found
