"""Dropout that is cheap on a CPU.

torch draws one Bernoulli number per element, on a single core: this takes a fifth of a LoRA step's time on a CPU, and
every layer keeps its mask for the backward pass. Here a micro-batch draws one pool of keep-or-drop factors, and each
layer uses a slice of it that begins at a random offset. Each element is still dropped with the configured probability
and scaled by its inverse; unlike with `torch.nn.Dropout`, two layers' masks may be shifted parts of one another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SLACK = 1 << 18
"""Elements of the pool beyond the largest slice: the number of offsets at which a slice may begin."""


class Pool:
    """Factors for one micro-batch: 0 with probability `p`, else 1 / (1 - p). Drawn from torch's default generator.

    `width` is that of the widest layer. The number of draws depends on it and on the micro-batch alone, so that a
    resumed run draws the same numbers as an uninterrupted one.
    """

    def __init__(self, p: float, width: int) -> None:
        self.p, self.width = p, width
        self._factors = torch.empty(0)

    def renew(self, model: nn.Module, _: Any, named: dict[str, Any]) -> None:
        """Draw new factors before a forward pass. Not in place: the previous pass may still need its factors for its
        backward pass."""
        if model.training:
            size = named["input_ids"].numel() * self.width + SLACK
            self._factors = torch.empty(size).bernoulli_(1 - self.p).div_(1 - self.p)

    def take_slice(self, like: torch.Tensor) -> torch.Tensor:
        """Factors of the shape of `like`, from a random offset in the pool."""
        size = like.numel()
        begin = int(torch.randint(len(self._factors) - size + 1, ()))
        return self._factors[begin : begin + size].view(like.shape)


class PooledDropout(nn.Module):
    """Replaces `nn.Dropout` on a CPU."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.pool.take_slice(x) if self.training else x


def install(model: nn.Module) -> None:
    """Replace the dropout of `model`'s adapters. The whole model must be on a CPU."""
    pools: dict[float, Pool] = {}
    width = max(module.in_features for module in model.modules() if isinstance(module, nn.Linear))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and module.p > 0 and ".lora_dropout." in name:
            model.set_submodule(name, PooledDropout(pools.setdefault(module.p, Pool(module.p, width))))
    for pool in pools.values():
        model.register_forward_pre_hook(pool.renew, with_kwargs=True)
