"""Counts the operations that torch is asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READ = "aten::_local_scalar_dense"
"""Each `item()`, `float()` and `bool()` of a tensor; on a GPU it waits until everything before it is computed."""


class Operations(TorchDispatchMode):  # type: ignore[misc]
    """Within this context, operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function._schema.name] += 1
        return function(*args, **(kwargs or {}))
