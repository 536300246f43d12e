"""Compiles the decoding of one token of one row into a program that needs neither Python nor torch's dispatcher.

The program is compiled from the model's configuration; the weights are passed to it at run time. So all checkpoints and
merged adapters of a base share it. It writes keys and values into tensors of a fixed capacity. This capacity is a
dynamic dimension of the program, so one program works for all capacities.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from engine.models.versions import list_versions

FORMAT = 1
"""Raise it when the program's arguments change."""
LEAST_CAPACITY = 64
_INLINED = 8
"""The compiler writes the values of tensors with at most this many elements into the program."""


class GivenLayer(DynamicLayer):
    """A cache layer that writes one position of the given keys and values `[1, heads, capacity, width]`."""

    def __init__(self, keys: Any, values: Any, position: Any) -> None:
        super().__init__()
        self.keys, self.values, self._position = keys, values, position
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys, self.values


class Step(torch.nn.Module):
    """Computes the logits `[1, vocabulary]` after one token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, position: Any, held: list[Any]) -> Any:
        """`ids` [1, 1] is the token, `position` [1] its position. `held` has keys and values of each layer in turn;
        those of the token are written into them."""
        layers = [GivenLayer(held[at], held[at + 1], position) for at in range(0, len(held), 2)]
        seen = torch.arange(held[0].shape[2], device=ids.device) <= position
        output = self.model(
            input_ids=ids,
            position_ids=position[None],
            attention_mask=seen[None, None, None],
            past_key_values=Cache(layers=layers),
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def name_program(model: Any) -> str:
    """A name with a hash of everything that the program depends on."""
    config = {
        key: value for key, value in model.config.to_dict().items() if not key.startswith(("_name", "id2", "label2"))
    }
    parts = {
        "format": FORMAT,
        "config": config,
        "attention": model.config._attn_implementation,
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "device": describe_device(model.device),
        "threads": torch.get_num_threads(),
        "versions": list_versions(),
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{model.config.model_type}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def describe_device(device: Any) -> str:
    """The GPU's name, or a hash of the CPU's name and instruction sets, because several machines may share a home."""
    device = torch.device(device)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    chosen = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return f"{platform.machine()} {hashlib.sha256(''.join(chosen).encode()).hexdigest()[:12]}"


def build(base: str, attention: str, dtype: str, device: str, path: Path) -> None:
    """Compile the program for the configuration in `base` and write it to `path`, which appears only when it is
    complete. Raises whatever export and compiler raise."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    _check_sizes(model)
    model.eval().requires_grad_(False)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            # On a CPU, memory that is allocated but never written takes no room.
            setattr(module, name, torch.nn.Parameter(torch.empty_like(weight, device=device), requires_grad=False))
    model.to(device).tie_weights()
    with torch.no_grad():
        ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        first = model(input_ids=ids.repeat(1, 2), use_cache=True).past_key_values
        held = Held(first, 4 * LEAST_CAPACITY).tensors
        most = config.get_text_config().max_position_embeddings
        length = torch.export.Dim("length", min=LEAST_CAPACITY, max=max(most, 8 * LEAST_CAPACITY))
        shapes: Any = ({}, {}, [{2: length}] * len(held))
        exported = torch.export.export(Step(model), (ids, ids[0], held), dynamic_shapes=shapes)
    being_made = path.with_suffix(".making.pt2")
    torch._inductor.aoti_compile_and_package(
        exported, package_path=str(being_made), inductor_configs={"aot_inductor.package_constants_in_so": False}
    )
    being_made.replace(path)


def _check_sizes(model: Any) -> None:
    """Raises ValueError for weights so small that the compiler would write their values into the program."""
    state = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.numel() <= _INLINED and (id(tensor) in state or isinstance(tensor, torch.nn.Parameter)):
            raise ValueError(f"{name} has only {tensor.numel()} numbers")


class Held:
    """Keys and values of one row in tensors of a fixed capacity, which doubles when it is full."""

    def __init__(self, cache: Any, capacity: int) -> None:
        """Takes the content of a cache of transformers, and makes room for at least `capacity` tokens."""
        self.length = int(cache.get_seq_length())
        self.capacity = max(LEAST_CAPACITY, capacity)
        self.tensors = [self._enlarge(tensor) for layer in cache.layers for tensor in (layer.keys, layer.values)]

    def make_room(self) -> None:
        """Make room for one more token."""
        if self.length >= self.capacity:
            self.capacity *= 2
            self.tensors = [self._enlarge(tensor) for tensor in self.tensors]

    def _enlarge(self, tensor: Any) -> Any:
        made = tensor.new_zeros((*tensor.shape[:2], self.capacity, tensor.shape[3]))
        made[:, :, : self.length] = tensor[:, :, : self.length]
        return made

    def to_cache(self) -> Any:
        """A cache of transformers with the same content, to go on without the program."""
        layers = []
        for at in range(0, len(self.tensors), 2):
            layer = DynamicLayer()
            layer.update(*(tensor[:, :, : self.length].clone() for tensor in self.tensors[at : at + 2]))
            layers.append(layer)
        return Cache(layers=layers)

    def get_seq_length(self) -> int:
        return self.length
