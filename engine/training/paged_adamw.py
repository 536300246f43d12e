"""AdamW of bitsandbytes whose states keep their pages: over a rehearsal, a resume and a loop that is built again.

bitsandbytes allocates pages that move between host and device, and never frees them. A state that is dropped keeps its
pages, and one that is loaded from a checkpoint becomes an ordinary tensor on the device.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from bitsandbytes.functional import GlobalPageManager
from bitsandbytes.optim import AdamW, GlobalOptimManager

_KEPT = frozenset({"qmap1", "qmap2"})
"""Tensors of a state that are the same in every step: the values that 8 bits stand for."""


class PagedAdamW(AdamW):  # type: ignore[misc]
    """Make one at a time: it takes over the pages of those before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        pages = GlobalPageManager.get_instance().paged_tensors
        self._unused: dict[Any, list[Any]] = defaultdict(list)
        """Pages of optimisers that are gone, by shape and dtype."""
        for page in pages:
            self._unused[tuple(page.shape), page.dtype].append(page)
        pages.clear()

    def get_state_buffer(self, p: Any, dtype: Any = None) -> Any:
        """A buffer of zeros for a state of the weight `p`, in unused pages where there are some."""
        import torch

        dtype = dtype or torch.float32
        unused = self._unused[tuple(p.shape), dtype]
        if not unused:
            return super().get_state_buffer(p, dtype=dtype)
        buffer = unused.pop()
        buffer.zero_()
        self.page_mng.paged_tensors.append(buffer)
        return buffer

    def load_state_dict(self, state_dict: Any, move_to_device: bool = True) -> None:
        """As torch's, with each large state in pages."""
        import torch

        super().load_state_dict(state_dict, move_to_device=False)
        for weight, state in self.state.items():
            for name, value in state.items():
                if not torch.is_tensor(value):
                    continue
                if name in ("state1", "state2"):
                    buffer = self.get_state_buffer(weight, dtype=value.dtype)
                    state[name] = buffer.copy_(value)
                elif move_to_device:
                    state[name] = value.to(weight.device)

    def reset(self) -> None:
        """Make all states as they were before the first step, in their place."""
        import torch

        for state in self.state.values():
            for name, value in state.items():
                if torch.is_tensor(value) and name not in _KEPT:
                    value.zero_()
                elif name == "step":
                    state[name] = 0


def forget_overrides() -> None:
    """Let go of the weights of an earlier model that had a setting of their own."""
    GlobalOptimManager.get_instance().initialize()
