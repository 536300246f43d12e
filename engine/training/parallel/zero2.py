"""`launch.strategy: zero2`: each rank keeps the optimiser's states of its share of the weights, and moves those alone.

Every optimiser here makes the states of a weight when it first sees a gradient of it, and leaves a weight without one alone. So the optimiser
itself stays what it is, with all weights in its groups: before its step a rank lets go of the gradients that are not of its share, and after it
each share is sent round by its owner. Schedules, clipping, a changed learning rate and the scaler see no difference, and since the sums of
gradients and their norm are `ddp`'s own, so is every number that comes of them.

torch's ZeroRedundancyOptimizer wants weights of one dtype, optimisers by class, and refuses the `state_dict()` that accelerate asks for when it
takes an optimiser over; DeepSpeed and FSDP reduce gradients within the backward passes, where no rank could say any more that it ran out of memory.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from engine.training.ranks import Ranks

T = TypeVar("T")

BUCKET = 32 * 2**20
"""Bytes of weights that travel together."""


def deal(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank of each weight: the largest go first, each to the rank that has least. The same on every rank."""
    given, owners = [0] * ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        owners[index] = given.index(min(given))
        given[owners[index]] += sizes[index]
    return owners


class Shares:
    """The weights of a torch optimiser, in its own order, dealt to `ranks`. Each method is called on every rank alike."""

    def __init__(self, optimizer: Any, ranks: Ranks) -> None:
        self._optimizer, self._ranks = optimizer, ranks
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._owners = deal([weight.numel() for weight in self._weights], ranks.world)
        self._mine = {index for index, owner in enumerate(self._owners) if owner == ranks.rank}
        optimizer.register_step_pre_hook(self._drop_others)
        optimizer.register_step_post_hook(self._send_round)

    def _drop_others(self, *_: Any) -> None:
        for index, weight in enumerate(self._weights):
            if index not in self._mine:
                weight.grad = None

    def _send_round(self, *_: Any) -> None:
        import torch
        import torch.distributed as dist
        from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

        with torch.no_grad():
            for rank in range(self._ranks.world):
                share = [
                    weight.detach() for weight, owner in zip(self._weights, self._owners, strict=True) if owner == rank
                ]
                for bucket in _take_tensors(share, BUCKET):
                    flat = _flatten_dense_tensors(bucket)
                    dist.broadcast(flat, src=rank)
                    if rank != self._ranks.rank:
                        for weight, sent in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                            weight.copy_(sent)

    def whole(self) -> dict[str, Any]:
        """The optimiser's state as `ddp` would have it, by rank 0, those of other ranks in the host's memory; {} elsewhere."""
        from accelerate.utils import send_to_device

        state: dict[str, Any] = self._optimizer.state_dict()
        found = {}
        for index, owner in enumerate(self._owners):
            held = state["state"].get(index)
            if owner != 0:  # one weight at a time: all of them need not lie in memory twice
                held = self._ranks.to_first(send_to_device(held, "cpu"), owner)
            if held is not None:
                found[index] = held
        return {**state, "state": found} if self._ranks.first else {}

    def load(self, file: Path) -> None:
        """Go on with this rank's share of what `whole` gave, or `ddp` wrote."""
        import torch

        kept = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        # Copies: the rest of the file must not stay in memory.
        mine = {index: copy.deepcopy(state) for index, state in kept["state"].items() if index in self._mine}
        self._optimizer.load_state_dict({**kept, "state": mine})

    def together(self, values: Sequence[T]) -> list[T]:
        """One value for each weight, in the optimiser's order: that of the rank which owns it."""
        gathered = self._ranks.gather({index: values[index] for index in self._mine})
        return [gathered[owner][index] for index, owner in enumerate(self._owners)]
