"""NF4 for fused experts: three-dimensional parameters outside linear layers, which bitsandbytes does not quantise.

They are packed (quantised to NF4) one by one while the model is loaded, so the device never holds more than one of them
in 16 bits. The forward pass of a layer unpacks its experts. Autograd would save the unpacked weights for the backward
pass, and in the end those of the whole base. So a hook saves only a reference to the packed weight, and the backward
pass of the layer unpacks it once more. bitsandbytes 0.50 has a parametrisation of its own
(`bitsandbytes.nn.parametrize`), but with that one autograd saves all unpacked weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

_NAME = "bitsandbytes_nf4_with_experts"


class Config(BitsAndBytesConfig):  # type: ignore[misc]
    """A BitsAndBytesConfig with NF4 that also covers fused experts."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.quant_method = _NAME


class _Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """Tells the loader of transformers which parameters to quantise; the loader loads these one after the other."""

    def __init__(self, quantization_config: Config, **arguments: Any) -> None:
        quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES  # what all other code must see
        super().__init__(quantization_config, **arguments)

    def param_needs_quantization(self, model: Any, param_name: str, **arguments: Any) -> bool:
        return _is_expert_weight(model, param_name) or super().param_needs_quantization(model, param_name, **arguments)

    def get_quantize_ops(self) -> Any:
        return _Quantize(self)

    def _process_model_after_weight_loading(self, model: Any, **arguments: Any) -> Any:
        for module in filter(_holds_experts, list(model.modules())):
            packed = [name for name, weight in module.named_parameters(recurse=False) if hasattr(weight, _STATE)]
            if packed:
                _install(module, packed)
                model.packed_experts = True  # read by code that attaches adapters
        return super()._process_model_after_weight_loading(model, **arguments)


class _Quantize(Bnb4bitQuantize):  # type: ignore[misc]
    def convert(self, input_dict: dict[str, Any], *, model: Any = None, **arguments: Any) -> dict[str, Any]:
        experts = {name: value for name, value in input_dict.items() if _is_expert_weight(model, name)}
        others = {name: value for name, value in input_dict.items() if name not in experts}
        found = super().convert(others, model=model, **arguments) if others else {}
        for name, value in experts.items():
            found[name] = _pack(value[0] if isinstance(value, list) else value)
        return found


AUTO_QUANTIZER_MAPPING[_NAME] = _Quantizer

_STATE = "quant_state"
"""The attribute of a packed parameter that says how to unpack it, as in bitsandbytes' own."""


def _is_expert_weight(model: Any, name: str) -> bool:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    weight = module._parameters.get(own)
    return _holds_experts(module) and weight is not None and (weight.dim() == 3 or hasattr(weight, _STATE))


def _holds_experts(module: nn.Module) -> bool:
    """Whether this is one of transformers' modules of fused experts."""
    return type(module).__name__.endswith("Experts")


def _pack(value: Any) -> Any:
    packed, state = quantize_4bit(value.contiguous(), compress_statistics=True, quant_type="nf4")
    weight = nn.Parameter(packed, requires_grad=False)
    weight.quant_state = state  # type: ignore[attr-defined]
    return weight


class Unpack(nn.Module):
    """The parametrisation of a packed weight: reading the weight unpacks it."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.state = weight.quant_state
        self._weight = [weight]  # a list, so that it is registered in one place only
        self.storage: int | None = None
        """The address of the weight that the current forward pass has unpacked; None outside a pass."""

    def forward(self, packed: Any) -> Any:
        with torch.no_grad():
            weight = dequantize_4bit(packed, self.state)
        self.storage = weight.untyped_storage().data_ptr()
        return weight

    def again(self) -> Any:
        """The unpacked weight, for the backward pass. The weights of the current layer are kept until another layer is
        computed, because the backward pass reads them once for each expert."""
        if not any(each is self for each in _recent):
            if len(_recent) >= _KEPT:
                _recent.clear()
            with torch.no_grad():
                _recent[self] = dequantize_4bit(self._weight[0], self.state)
        return _recent[self]


_KEPT = 2
"""Number of unpacked weights that are kept in a backward pass: a layer of experts has two."""
_recent: dict[Unpack, Any] = {}


def _install(module: nn.Module, names: list[str]) -> None:
    """Make the forward pass of `module` unpack these packed parameters when it reads them."""
    for name in names:
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, Unpack(weight), unsafe=True)
        original = module.parametrizations[name].original  # type: ignore[index, union-attr]
        original.quant_state = weight.quant_state
    module.forward = functools.partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(module: nn.Module, plain: Any, *arguments: Any, **named: Any) -> Any:
    unpacks = [unpack for _, unpack in _list_unpacks(module)]
    _recent.clear()

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None
        for unpack in unpacks:
            if storage is not None and storage == unpack.storage:
                return unpack, tensor.shape, tensor.stride(), tensor.storage_offset()
        return tensor

    def read(noted: Any) -> Any:
        if isinstance(noted, tuple):
            unpack, shape, stride, offset = noted
            return unpack.again().as_strided(shape, stride, offset)
        return noted

    try:
        with parametrize.cached():
            # With gradient checkpointing, its own hooks must see each tensor, and save none of them.
            if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True):
                return plain(*arguments, **named)
            with saved_tensors_hooks(note, read):
                return plain(*arguments, **named)
    finally:
        for unpack in unpacks:
            unpack.storage = None


def _list_unpacks(module: nn.Module) -> Iterator[tuple[str, Unpack]]:
    for name, parametrizations in getattr(module, "parametrizations", {}).items():
        for each in parametrizations:
            if isinstance(each, Unpack):
                yield name, each


def list_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose experts are packed."""
    return [module for module in model.modules() if any(True for _ in _list_unpacks(module))]


def count_weights(model: nn.Module) -> int:
    """The number of weights in packed experts."""
    return sum(unpack.state.shape.numel() for module in list_modules(model) for _, unpack in _list_unpacks(module))


def set_dtype(model: nn.Module, dtype: Any) -> None:
    """Set the dtype that packed experts are unpacked to."""
    for module in list_modules(model):
        for _, unpack in _list_unpacks(module):
            unpack.state.dtype = dtype


def unpack_all(model: nn.Module, dtype: Any) -> None:
    """Unpack all experts permanently; every result stays the same, bit for bit."""
    set_dtype(model, dtype)
    for module in list_modules(model):
        for name, _ in list(_list_unpacks(module)):
            weight = getattr(module, name)
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            setattr(module, name, nn.Parameter(weight, requires_grad=False))
        del module.forward  # the class's own
