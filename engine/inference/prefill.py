"""Forward passes that can be given up: a prompt is read in parts, and between the model's layers one asks whether to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_OPERATIONS = {"cpu": 8e9}
"""What a layer may compute before one asks again: a tenth of a second on two slow cores."""
_OPERATIONS_ELSEWHERE = 1e13


class Cancelled(Exception):
    """A forward pass was given up; the cache that it filled is of no use."""


class Reader:
    """Reads token ids with `model`, and asks `cancelled` on the way."""

    def __init__(self, model: Any, cancelled: Callable[[], bool]) -> None:
        import torch

        self._model, self._cancelled = model, cancelled
        lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
        self._layers = max(lists, key=len, default=())
        """What a forward pass goes through one after the other."""

    def __call__(self, ids: Any, cache: Any, mask: Any = None, positions: Any = None) -> Any:
        """The output at the end of `ids` [rows, tokens], which follow what `cache` holds: logits of the last position, and the cache.

        `mask` [rows, held + tokens] and `positions` [rows, tokens] where rows are padded. Raises Cancelled.
        """
        total = ids.shape[1]
        held = cache.get_seq_length() if cache is not None else 0
        part = self._part(ids.shape[0], held + total) if total > 1 else 1
        for start in range(0, total, part):
            end = min(start + part, total)
            padded = {}
            if mask is not None:
                padded = {"attention_mask": mask[:, : held + end], "position_ids": positions[:, start:end]}
            with self._asking(end - start > 1):
                output = self._model(
                    input_ids=ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1, **padded
                )
            cache = output.past_key_values
        return output

    def _part(self, rows: int, context: int) -> int:
        """Tokens a row that are read at a time, by the model's sizes alone: the same prompt is always read alike."""
        model = self._model
        if getattr(model, "reads_both_ways", False):
            return context
        weights = sum(weight.numel() for weight in self._layers[0].parameters()) if self._layers else 0
        hidden = getattr(model.config.get_text_config(), "hidden_size", 0)
        operations = rows * (2 * weights + 4 * hidden * context)
        return max(64, int(_OPERATIONS.get(model.device.type, _OPERATIONS_ELSEWHERE) / max(operations, 1)))

    @contextmanager
    def _asking(self, many: bool) -> Iterator[None]:
        """Within, each layer first asks. The hooks live for one pass: between two tokens the model may serve others."""
        import torch

        wait = many and self._model.device.type != "cpu"

        def ask(*_: Any) -> None:
            if wait:
                torch.accelerator.synchronize()  # else all layers are asked before the first has computed anything
            if self._cancelled():
                raise Cancelled

        hooks = [layer.register_forward_pre_hook(ask) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
