"""Forward passes that can be cancelled: a prompt is processed in chunks, and each layer first checks for
cancellation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from engine.models import accelerator

_OPERATIONS = {"cpu": 8e9}
"""Operations of a layer between two checks: a tenth of a second on two slow cores."""
_OPERATIONS_ELSEWHERE = 1e13
_OPERATIONS_OF_A_TOKEN = 1e9
"""On a CPU, one token of each row with fewer takes about a tenth of a second, and is not interrupted. Other devices
compute later than they are told to."""


class Cancelled(Exception):
    """A forward pass was cancelled; the cache that it was filling is unusable."""


class CancellableForward:
    """Runs `model` on token ids, calling `cancelled` between its layers."""

    def __init__(self, model: Any, cancelled: Callable[[], bool]) -> None:
        self._model, self._cancelled = model, cancelled
        self._layers = _find_layers(model)
        """The layers of the model, in order."""
        self._weights = _count_weights(self._layers)
        """The weights of a layer."""
        operations = 2 * self._weights * len(self._layers)
        self._uninterrupted = _OPERATIONS_OF_A_TOKEN // max(operations, 1) if model.device.type == "cpu" else math.inf
        """The number of rows of which one token is computed without a check."""

    def __call__(self, ids: Any, cache: Any, mask: Any = None, positions: Any = None) -> Any:
        """Logits of the last position of `ids` [rows, tokens], which continue `cache`, and the cache.

        `mask` [rows, held + tokens] and `positions` [rows, tokens] where rows are padded. Raises Cancelled.
        """
        total = ids.shape[1]
        held = cache.get_seq_length() if cache is not None else 0
        chunk = self._chunk_size(ids.shape[0], held + total) if total > 1 else 1
        checks = total > 1 or ids.shape[0] > self._uninterrupted
        for start in range(0, total, chunk):
            end = min(start + chunk, total)
            padded = {}
            if mask is not None:
                padded = {"attention_mask": mask[:, : held + end], "position_ids": positions[:, start:end]}
            with self._cancellation_hooks(end - start > 1) if checks else nullcontext():
                output = self._model(
                    input_ids=ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1, **padded
                )
            cache = output.past_key_values
        return output

    def score(self, ids: Any, cache: Any) -> Any:
        """Logits of all positions of `ids` [rows, tokens], which continue `cache`, in one pass, and the cache. Raises
        Cancelled."""
        with self._cancellation_hooks(ids.shape[1] > 1):
            return self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=ids.shape[1])

    def _chunk_size(self, rows: int, context: int) -> int:
        """Tokens of a row in one pass. It depends on the model's sizes alone, so that a prompt is always split
        alike."""
        return chunk_size(self._model, rows, context, self._model.device.type, self._weights)

    @contextmanager
    def _cancellation_hooks(self, many: bool) -> Iterator[None]:
        """Within, each layer first checks for cancellation. The hooks live for one pass: between two tokens the model
        may be in use elsewhere."""

        def check(*_: Any) -> None:
            if many:  # wait, else all layers check before the first has computed anything
                accelerator.synchronize(self._model.device)
            if self._cancelled():
                raise Cancelled

        hooks = [layer.register_forward_pre_hook(check) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _find_layers(model: Any) -> Any:
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=())


def _count_weights(layers: Any) -> int:
    return sum(weight.numel() for weight in layers[0].parameters()) if layers else 0


def chunk_size(model: Any, rows: int, context: int, device: str, weights: int | None = None) -> int:
    """Tokens of a row in one pass on a kind of device; `weights` are those of a layer, if they are counted already."""
    if getattr(model, "reads_both_ways", False):
        return context
    weights = _count_weights(_find_layers(model)) if weights is None else weights
    hidden = getattr(model.config.get_text_config(), "hidden_size", 0)
    operations = rows * (2 * weights + 4 * hidden * context)
    return max(64, int(_OPERATIONS.get(device, _OPERATIONS_ELSEWHERE) / max(operations, 1)))
