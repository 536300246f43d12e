"""Decodes one token of one row with the operations of the model and nothing around them.

transformers' modules take more of the host's time for each operation than the operation itself needs with one row: on
a CPU a third of the time of a token, on a GPU most of it. For the families in `_LAYERS`, whose layers are alike, the
operations are called here one after another, in the same order and with the same roundings. On CUDA they are captured
in a graph, so that the host starts one thing for each token instead of a thousand. `engine.inference.compiled_step`
tries this on the device before it is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from engine.inference.step_program import Held

KEPT_BYTES = 256 * 2**20
"""Bytes of captured keys and values that are kept between replies."""
_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary positions that are computed without asking a tensor for a number."""

Replay = Callable[[], Any]
Capture = Callable[[Callable[[], Any]], Replay]
"""Makes a function that does again what the given one does, with the same tensors, and returns its result."""


def is_lean(model: Any) -> bool:
    """Whether `LeanStep` knows this model's layers."""
    inner = getattr(model, "model", None)
    layers = getattr(inner, "layers", None) or ()
    rotary = getattr(inner, "rotary_emb", None)
    return (
        bool(len(layers))
        and all(type(layer).__name__ in _LAYERS for layer in layers)
        and type(model).__module__.startswith("transformers.models.")
        and type(model).__name__.endswith("ForCausalLM")
        and not getattr(model, "reads_both_ways", False)
        and getattr(rotary, "rope_type", None) in _ROPES
        and model.config.hidden_act == "silu"
        and not _has_hooks(model)
    )


def _has_hooks(model: Any) -> bool:
    """Whether something outside wants to see or change what layers compute. transformers' own hooks do nothing but
    collect hidden states where they are asked for."""
    return any(module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in model.modules())


class LeanStep:
    """The step of one model. Adapters that are merged, or `LowRank` beside a layer, are computed as the model does."""

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        """`capture` makes the steps of a row repeatable; None computes each by itself."""
        self._capture = capture
        self.take_weights(model)

    def take_weights(self, model: Any) -> None:
        """Use the weights of `model`, without copying them."""
        self.model = model
        inner = model.model
        self._layers = [_Layer(layer, model.config) for layer in inner.layers]
        self._embed, self._rotary = inner.embed_tokens, inner.rotary_emb
        self._norm: Any = _Norm(inner.norm)
        self._head: Any = _linear(model.lm_head)
        self._captured: _Captured | None = None

    def drop_weights(self) -> None:
        """Forget the model, so that its memory can be freed; `take_weights` comes before the next step."""
        self.model = self._embed = self._rotary = self._norm = self._head = self._captured = None
        self._layers = []

    def rest(self) -> None:
        """Between replies: free the captured tensors of a long one, which others may need the memory of."""
        if self._captured is not None and self._captured.size > KEPT_BYTES:
            self._captured = None

    def step(self, ids: Any, held: Held) -> Any:
        """The logits `[1, vocabulary]` after the token `ids` [1, 1], which is appended to the cache `held`. They are
        overwritten by the next step where steps are captured."""
        held.make_room()
        if self._capture is not None and (captured := self._open(held)) is not None:
            logits = captured.step(ids, held.length)
        else:
            position = torch.tensor([held.length], device=ids.device)
            logits = self.compute(ids, position, held.tensors, held.length + 1)
        held.length += 1
        return logits

    def _open(self, held: Held) -> _Captured | None:
        """The captured steps for this row; None while another row uses them."""
        captured = self._captured
        if captured is not None and captured.owner() not in (None, held):
            return None
        if captured is None or captured.capacity != held.capacity:
            assert self._capture is not None
            self._captured = None  # its memory is free before the next one is captured
            captured = self._captured = _Captured(self, held, self._capture)
        captured.take(held)
        return captured

    def compute(self, ids: Any, position: Any, held: list[Any], length: int | None = None) -> Any:
        """The logits after the token at `position` [1], whose keys and values are written into `held`. Attention reads
        the first `length` positions; None: all of them, with a mask, so that no shape depends on the position."""
        hidden = self._embed(ids)[0]
        cos, signed = self._rotate(hidden, position)
        seen = None
        if length is None:
            seen = (torch.arange(held[0].shape[2], device=ids.device) <= position)[None, None, None]
        for number, layer in enumerate(self._layers):
            hidden = layer(hidden, cos, signed, position, held[2 * number], held[2 * number + 1], length, seen)
        return self._head(self._norm(hidden))

    def _rotate(self, hidden: Any, position: Any) -> tuple[Any, Any]:
        """Cosines and sines of the position, [1, width]. The first half of the sines is negated, as rotated halves
        are."""
        cos, sin = self._rotary(hidden[None], position[None])
        half = sin.shape[-1] // 2
        return cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)


class _Layer:
    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._before, self._between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._query, self._key, self._value, self._out = (
            _linear(getattr(attention, f"{name}_proj")) for name in ("q", "k", "v", "o")
        )
        self._gate, self._up, self._down = (_linear(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down"))
        self._norms = [_Norm(norm) if norm is not None else None for norm in (
            getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        )]  # fmt: skip
        self._width, self._scale = attention.head_dim, attention.scaling
        self._grouped = config.num_key_value_heads != config.num_attention_heads

    def __call__(
        self, hidden: Any, cos: Any, signed: Any, position: Any, keys: Any, values: Any, length: int | None, seen: Any
    ) -> Any:
        found = self._before(hidden)
        query, key, value = (product(found).view(-1, self._width) for product in (self._query, self._key, self._value))
        if self._norms[0] is not None and self._norms[1] is not None:
            query, key = self._norms[0](query), self._norms[1](key)
        heads, half = len(query), self._width // 2
        both = torch.cat((query, key))
        both = both * cos + both.roll(half, -1) * signed
        query, key = both[:heads, None], both[heads:, None]
        if length is None:
            keys.index_copy_(2, position, key[None])
            values.index_copy_(2, position, value[None, :, None])
        else:
            keys[0, :, length - 1] = key[:, 0]
            values[0, :, length - 1] = value
            keys, values = keys[:, :, :length], values[:, :, :length]
        attended = scaled_dot_product_attention(
            query[None], keys, values, attn_mask=seen, scale=self._scale, enable_gqa=self._grouped
        )
        hidden = hidden + self._out(attended.reshape(1, -1))
        found = self._between(hidden)
        return hidden + self._down(silu(self._gate(found)) * self._up(found))


class _Norm:
    """The root mean square norm of transformers: normalised in float32, rounded, then scaled."""

    def __init__(self, module: Any) -> None:
        self._module, self._epsilon = module, module.variance_epsilon

    def __call__(self, hidden: Any) -> Any:
        weight = self._module.weight
        if hidden.dtype == torch.float32:
            return rms_norm(hidden, weight.shape, weight, self._epsilon)
        return weight * rms_norm(hidden.float(), weight.shape, None, self._epsilon).to(hidden.dtype)


def _linear(module: Any) -> Callable[[Any], Any]:
    """What `module` computes, without a module's overhead where it is torch's own."""
    if type(module) is torch.nn.Linear and not module._forward_hooks:
        return lambda values: linear(values, module.weight, module.bias)
    return module  # type: ignore[no-any-return]


class _Captured:
    """Steps with one set of tensors, which rows use one after another."""

    def __init__(self, step: LeanStep, held: Held, capture: Capture) -> None:
        self.capacity = held.capacity
        device = held.tensors[0].device
        self._tensors = held.tensors  # the row's own: a copy would take as much again
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)
        self._ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._position = torch.full((1,), held.length, device=device)
        self.owner: Callable[[], Held | None] = lambda: None
        # The position that is written while capturing is written again by the first step.
        self._replay = capture(lambda: step.compute(self._ids, self._position, self._tensors))

    def take(self, held: Held) -> None:
        """Let `held` have its content in these tensors."""
        if self.owner() is held and held.tensors is self._tensors:
            return
        for own, given in zip(self._tensors, held.tensors, strict=True):
            own.copy_(given)
        held.tensors, self.owner = self._tensors, weakref.ref(held)

    def step(self, ids: Any, length: int) -> Any:
        self._ids.copy_(ids)
        self._position.fill_(length)
        return self._replay()


def capture_graph(function: Callable[[], Any]) -> Replay:
    """Capture the kernels of `function` in a CUDA graph."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # libraries allocate their workspaces at the first calls
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device
        result = function()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def make_lean_step(model: Any) -> LeanStep:
    """The step of `model`, captured where its device can."""
    return LeanStep(model, capture_graph if model.device.type == "cuda" else None)
