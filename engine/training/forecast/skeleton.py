"""The base without its weights: its real classes and shapes, in torch's FakeTensorMode.

Layers of bitsandbytes cannot compute without content. They are replaced by linear layers in 16 bits, which allocate
what those allocate: the packed weight, counted by its shape, and in each pass an unpacked copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.models import base
from engine.models.base import Progress
from engine.models.devices import Device
from engine.models.loading import read_generation
from engine.options.model import ModelOptions
from engine.protocol.messages import Problem, ProblemError
from engine.training.forecast.tracker import MemoryTracker

NF4_BLOCK = 64
"""Weights that share a scale in NF4."""
NF4_SCALES = 256
"""Scales that share a scale of their own with double quantisation."""
_CODES = 4 * (16 + 256) + 4
"""Bytes of a layer's two tables of values, and of the offset of its scales."""


def packed_bytes(shape: tuple[int, ...], quantization: str) -> int:
    """Bytes of a packed weight of this shape with its scales: of `nf4` with double quantisation, or of `int8`."""
    weights = math.prod(shape)
    if quantization == "int8":
        return weights + 4 * shape[0]
    scales = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // NF4_SCALES) + _CODES


def make_loader(tracker: MemoryTracker, available: int) -> Callable[..., Any]:
    """A function that takes the place of `engine.models.base.load`. `available` is the free memory of the host, on
    which it depends whether NF4 weights are unpacked once on a CPU."""

    def load(
        folder: str,
        options: ModelOptions,
        device: Device,
        progress: Progress,
        *,
        unpack: bool = True,
        scores: bool = False,
    ) -> Any:
        model = _build(folder, options, scores)
        tracker.count((*model.parameters(), *model.buffers()))
        unpacked = device.kind == "cpu" and options.quantization == "nf4" and unpack
        linear = sum(math.prod(weight.shape) for _, weight in _list_packed(model, options))
        unpacked = unpacked and linear * device.compute.itemsize <= available / 4
        if options.quantization != "none" and not unpacked:
            _pack(model, options, device, tracker)
        packed = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
        held = [layer._parameters.pop("weight") for layer in packed]  # which stay as they are
        base.cast(model, device.compute)
        for layer, weight in zip(packed, held, strict=True):
            layer._parameters["weight"] = weight
        return model.requires_grad_(options.quantization == "none")

    return load


def _build(folder: str, options: ModelOptions, scores: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    if read_generation(folder) is not None:
        raise ProblemError(
            Problem(
                code="forecast.unsupported",
                title="There is no forecast for this model",
                cause="it is a GLM in its original layout, which is loaded by code of our own",
                hint="the rehearsal before the first step shows whether it fits",
            )
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    if scores:
        config.num_labels = 1
    attention = None if options.attention in ("auto", *_KERNELS) else options.attention
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    with no_init_weights():
        model = kind.from_config(
            config,
            dtype=getattr(torch, options.dtype),
            attn_implementation=attention,
            trust_remote_code=options.trust_remote_code,
        )
    model.tie_weights()  # which comes with the weights' initial values otherwise
    return model.eval()


_KERNELS = ("flash_attention_2", "flash_attention_3")
"""Implementations that need a card. They take as little memory as torch's own."""


def _list_packed(model: Any, options: ModelOptions) -> list[tuple[str, Any]]:
    """Names and weights that quantisation packs: those of all linear layers but the output layer, and with
    `quantize_experts` the fused experts."""
    from transformers.quantizers.base import get_keys_to_not_convert

    plain = set(get_keys_to_not_convert(model))
    found = [
        (f"{name}.weight", module.weight)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name not in plain and name.rpartition(".")[2] not in plain
    ]
    if options.quantize_experts:
        found += [(name, weight) for name, weight in model.named_parameters() if weight.dim() == 3]
    return found


def _pack(model: Any, options: ModelOptions, device: Device, tracker: MemoryTracker) -> None:
    """Count the weights that are packed with their packed size, and let their layers unpack them in each pass."""
    experts = False
    for name, weight in _list_packed(model, options):
        path, _, own = name.rpartition(".")
        tracker.recount(weight, packed_bytes(tuple(weight.shape), options.quantization))
        layer = model.get_submodule(path)
        if weight.dim() == 2:
            plain = PackedLinear(layer, options.quantization)
            model.set_submodule(path, plain)
        else:
            experts = True
            nn.utils.parametrize.register_parametrization(layer, own, _Unpack(), unsafe=True)
    if experts:
        model.packed_experts = True  # read by code that attaches adapters
    setattr(model, f"is_loaded_in_{'4' if options.quantization == 'nf4' else '8'}bit", True)


class PackedLinear(nn.Linear):
    """Takes the place of bitsandbytes' `Linear4bit` and `Linear8bitLt`."""

    def __init__(self, layer: nn.Linear, quantization: str) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = nn.Parameter(layer.weight.detach(), requires_grad=False), layer.bias
        self.quantization = quantization

    def forward(self, x: Any) -> Any:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        found: Any = _PackedProduct.apply(x, self.weight, self.bias, self.quantization)
        return found.clone() if self.quantization == "nf4" else found  # as peft does


class _PackedProduct(torch.autograd.Function):
    """x · Wᵀ, where a pass unpacks W (NF4) or packs x (int8), and the backward pass unpacks W again."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, quantization: str) -> Any:
        ctx.weight, ctx.dtype = weight, x.dtype
        if quantization == "nf4":
            return nn.functional.linear(x, weight.to(x.dtype, copy=True), bias)
        ctx.save_for_backward(x)  # as bitsandbytes does
        packed = x.to(torch.int8)
        product = torch.empty(*x.shape[:-1], weight.shape[0], dtype=torch.int32, device=x.device)
        del packed
        found = product.to(x.dtype)
        return found if bias is None else found + bias

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
        into = gradient @ ctx.weight.to(gradient.dtype, copy=True) if ctx.needs_input_grad[0] else None
        return into, None, None, None


class _Unpack(nn.Module):
    """Reading a packed weight of fused experts unpacks it."""

    def forward(self, packed: Any) -> Any:
        return packed.detach().clone()


@contextmanager
def treat_as_real() -> Iterator[None]:
    """Context in which the libraries treat fake weights as others.

    Moving or casting a module replaces its weights: torch would exchange the content of fake ones, which it refuses
    while anybody else refers to them. And transformers leaves out the masks that it leaves out otherwise: it takes fake
    tensors for those of a compiler, which needs the same program for all. Weights are not filled.
    """
    from transformers import masking_utils

    plain, tracing = nn.Module._apply, masking_utils.is_tracing
    initial = {name: getattr(nn.init, name) for name in vars(nn.init) if name.endswith("_") and name[0] != "_"}
    for name in initial:  # there is nothing to fill
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    nn.Module._apply = _apply  # type: ignore[method-assign]
    masking_utils.is_tracing = lambda *_: False
    try:
        yield
    finally:
        nn.Module._apply = plain  # type: ignore[method-assign]
        masking_utils.is_tracing = tracing
        for name, fill in initial.items():
            setattr(nn.init, name, fill)


def _apply(module: nn.Module, convert: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
    made: dict[int, Any] = {}  # tied weights stay tied
    for part in module.modules() if recurse else [module]:
        for name, weight in part._parameters.items():
            if weight is not None and id(weight) not in made:
                with torch.no_grad():
                    found = convert(weight)
                same = found is weight
                made[id(weight)] = weight if same else nn.Parameter(found, requires_grad=weight.requires_grad)
            if weight is not None:
                part._parameters[name] = made[id(weight)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer if buffer is None else convert(buffer)
    return module
