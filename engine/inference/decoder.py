"""Makes the model that decodes tokens: the loaded model without peft's layers.

A LoRA layer of peft adds two matrix products and two conversions to each product of the base. With one row, the device
waits for the host to launch their kernels. So the adapter is merged into copies of the weights, and a token takes only
the operations of the base. Where that is not possible (a base in 4 or 8 bits, too little memory), a layer adds two
products in the dtype of the base.

The modules are copies that share all other tensors with the loaded model. The loaded model is not changed, since
likelihoods and exports are computed with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import copy as copy_of
from typing import TYPE_CHECKING, Any

import torch

from engine.models import accelerator
from engine.models.libraries import is_adapted
from engine.models.memory import is_out_of_memory

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt")
"""Classes of peft's LoRA layers that are replaced."""
_OWN = frozenset(name for name, value in vars(torch.nn.Module()).items() if isinstance(value, (dict, set)))
"""Attributes of modules that hold parameters, buffers, modules or hooks."""
_SHARE = {"cpu": 0.25}
_SHARE_ELSEWHERE = 0.5
"""Share of a device's free memory that merged copies may take. The rest is for the cache."""


def make_decoder(model: Any) -> Any:
    """A faster model that decodes like `model`, which must be in evaluation mode; `model` itself if none is faster."""
    if not is_adapted(model) or not _is_plain_lora(model):
        return model
    base = model.get_base_model()
    layers = [module for module in base.modules() if _is_replaceable(module)]
    if not layers:
        return model
    may_merge, dtype = has_room(layers), base.get_input_embeddings().weight.dtype

    def replace(layer: Any) -> Any:
        if may_merge and can_merge(layer):
            try:
                return _merge(layer)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                accelerator.release()
        return LowRank.of(layer, dtype)

    with torch.no_grad():
        return copy_modules(base, {layer: replace(layer) for layer in layers})


class LowRank(torch.nn.Module):
    """A layer with a low-rank update, computed in its own dtype: `base(x) + up(down(x))`."""

    def __init__(self, base: Any, down: Any, up: Any) -> None:
        """`down` is [rank, in], `up` [out, rank] with the update's scale."""
        super().__init__()
        self.base = base
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    @classmethod
    def of(cls, layer: Any, dtype: Any) -> LowRank:
        """A layer that computes what this LoRA layer of peft computes, with its active adapters joined into one.
        `dtype` is that of the values between layers."""
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        down = torch.cat([layer.lora_A[name].weight.float() for name in names])
        up = torch.cat([layer.lora_B[name].weight.float() * layer.scaling[name] for name in names], 1)
        return cls(layer.get_base_layer(), down.to(dtype), up.to(dtype))

    def forward(self, values: Any) -> Any:
        found = self.base(values)
        low = torch.nn.functional.linear(values.to(self.down.dtype), self.down)
        flat = found.flatten(0, -2).to(low.dtype)
        return torch.addmm(flat, low.flatten(0, -2), self.up.t()).view(found.shape).to(found.dtype)


def merge_delta(layer: LoraLayer) -> Any:
    """The base layer's weight plus its active adapters, added in float32 and rounded once, to the weight's dtype."""
    weight = layer.get_base_layer().weight.detach()
    merged = weight.float()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            merged = merged + layer.get_delta_weight(name).detach().float()  # type: ignore[operator]
    return merged.to(weight.dtype)


def can_merge(layer: Any) -> bool:
    """Whether `merge_delta` and the base's own forward pass compute what this LoRA layer of peft computes."""
    base = layer.get_base_layer()
    # The type of a weight that is divided among processes is not Parameter itself.
    return type(base) is torch.nn.Linear and type(base.weight) is torch.nn.Parameter and _is_vanilla(layer)


def _is_vanilla(layer: Any) -> bool:
    return not (layer.merged or layer.disable_adapters or layer.lora_variant or any(layer.lora_bias.values()))


def _is_replaceable(module: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer) or type(module).__name__ not in _LAYERS or not _is_vanilla(module):
        return False
    return any(name in module.lora_A for name in module.active_adapters)


def _is_plain_lora(model: Any) -> bool:
    """Whether peft changes the forward pass in its LoRA layers only, each by itself."""
    config = model.active_peft_config
    return str(config.peft_type.value) == "LORA" and not getattr(config, "alora_invocation_tokens", None)


def has_room(layers: list[Any]) -> bool:
    """Whether every device has room for merged copies of those base weights of these LoRA layers that it holds."""
    needed: defaultdict[Any, int] = defaultdict(int)
    for layer in filter(can_merge, layers):
        weight = layer.get_base_layer().weight
        needed[weight.device] += weight.numel() * weight.element_size()
    return all(
        size < _SHARE.get(device.type, _SHARE_ELSEWHERE) * accelerator.free_bytes(device)
        for device, size in needed.items()
    )


def _merge(layer: Any) -> Any:
    """A new linear layer with the adapter merged into its weight."""
    base = layer.get_base_layer()
    merged = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    merged.weight = torch.nn.Parameter(merge_delta(layer), requires_grad=False)
    merged.bias = base.bias
    return merged.eval()


def copy_modules(module: Any, replaced: dict[Any, Any]) -> Any:
    """A copy of the tree of modules that shares parameters and buffers, with some modules replaced."""
    copies: dict[Any, Any] = {}

    def copy(found: Any) -> Any:
        if found not in copies:
            copies[found] = replaced[found] if found in replaced else _copy_module(found, copy)
        return copies[found]

    return copy(module)


def _copy_module(module: Any, copy: Callable[[Any], Any]) -> Any:
    made = module.__new__(type(module))
    # These dictionaries are copied, so that parameters, buffers and hooks can be added to one module without the other.
    made.__dict__ = {name: copy_of(value) if name in _OWN else value for name, value in vars(module).items()}
    made.__dict__["_modules"] = {name: child and copy(child) for name, child in module._modules.items()}
    hook = made.__dict__.pop("_hf_hook", None)
    if hook is not None:  # accelerate has replaced `forward` by one that is bound to the original module
        from accelerate.hooks import add_hook_to_module

        for name in ("forward", "_old_forward"):
            made.__dict__.pop(name, None)
        add_hook_to_module(made, hook)
    return made
