"""Decoding many rows at once with a model that is being trained, or on a CPU in about half the time.

A LoRA layer takes three matrix products, and with few rows they are mostly overhead. So during an evaluation every
linear layer with an adapter gets a copy of its weight with the adapter merged in. On a CPU all linear layers get one,
stored [in, out]: a product of about 2 to 64 rows with a weight stored [out, in] costs twice as much (measured with
MKL). The weights themselves stay untouched: whatever is computed afterwards is bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.inference.decoder import can_merge, has_room, merge_delta


@contextmanager
def merge_weights(model: Any, *, rounded: bool = False) -> Iterator[bool]:
    """Within, the linear layers of `model` compute with such copies; yields whether any does.

    `rounded` allows merged weights of 16 bits, which are rounded once more: right for replies, too coarse for a loss
    that is compared with others. Does nothing where that would be inexact or no faster: in 16 bits unless `rounded`,
    where memory is short, and with adapters other than LoRA.
    """
    on_cpu = computes_on_cpu(model)
    layers = [(linear, adapter) for linear, adapter in _layers(model) if on_cpu or (adapter and rounded)]
    if not (_has_memory(model) if on_cpu else has_room([adapter for _, adapter in layers])):
        layers = []
    kept = [(linear, linear.weight) for linear, _ in layers]
    try:
        for linear, adapter in layers:
            _merge(linear, adapter, transposed=on_cpu)
        yield bool(layers)
    finally:
        for linear, weight in kept:
            linear.weight = weight
        for _, adapter in layers:
            if adapter is not None:
                adapter.merged_adapters.clear()


def computes_on_cpu(model: Any) -> bool:
    """Whether the whole model is in float32 on a CPU."""
    import torch

    return all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters())


def _has_memory(model: Any) -> bool:
    import psutil

    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return bool(size < psutil.virtual_memory().available / 4)


def _layers(model: Any) -> Iterator[tuple[Any, Any]]:
    """Each linear layer that is not part of an adapter, with the LoRA layer around it or None."""
    import torch
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside = {id(part) for layer in model.modules() if isinstance(layer, BaseTunerLayer) for part in layer.modules()}
    for layer in model.modules():
        if isinstance(layer, Linear):
            if can_merge(layer):
                yield layer.get_base_layer(), layer
        elif type(layer) is torch.nn.Linear and id(layer) not in inside:
            yield layer, None


def _merge(linear: Any, adapter: Any, *, transposed: bool) -> None:
    """Replace the weight of `linear` by the merged copy."""
    import torch

    weight = linear.weight.detach()
    if adapter is not None:
        weight = merge_delta(adapter)
        adapter.merged_adapters.extend(name for name in adapter.active_adapters if name in adapter.lora_A)
    if transposed:
        weight = weight.t().contiguous().t()
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
