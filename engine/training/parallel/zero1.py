"""`launch.strategy: zero1`: each rank holds the optimiser's state for its share of the weights, and updates only those.

Every optimiser here creates the state of a weight at its first gradient, and skips weights without one. So the
optimiser is the ordinary one, with all weights in its groups: before its step a rank drops the gradients outside its
share, and afterwards the owner of each share broadcasts it. Schedules, clipping, a changed learning rate and the loss
scaler work unchanged, and as the gradients and their norm are those of `ddp`, so are all results.

Unlike `zero2` and `fsdp`, this works with every optimiser, and a rank that runs out of memory can report it.

torch's ZeroRedundancyOptimizer requires weights of one dtype, takes optimisers by class, and does not support the
`state_dict()` that accelerate calls when it prepares an optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from engine.training.parallel.ddp import DataParallel
from engine.training.parallel.reduction import send_in_buckets
from engine.training.ranks import Ranks

T = TypeVar("T")


class Zero1(DataParallel):
    """Data parallel with the optimiser's state sharded over the ranks."""

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        def make_sharded(model: Any) -> Any:
            optimizer = make_optimizer(model)
            self.shards = OptimizerShards(optimizer, self.ranks)
            return optimizer

        super().prepare(model, make_sharded)

    def save(self) -> dict[str, Any]:
        return self.shards.gather_state()

    def load_optimizer(self, saved: dict[str, Any]) -> None:
        self.shards.load(saved)

    def optimizer_pieces(self, pieces: list[Any]) -> list[Any]:
        return self.shards.gather_pieces(pieces)


def assign_owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank that owns each weight: the largest weights are assigned first, each to the rank with the fewest
    elements. The same on every rank."""
    assigned, owners = [0] * ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        owners[index] = assigned.index(min(assigned))
        assigned[owners[index]] += sizes[index]
    return owners


class OptimizerShards:
    """The weights of a torch optimiser, in its own order, divided among `ranks`. Every rank calls each method."""

    def __init__(self, optimizer: Any, ranks: Ranks) -> None:
        self._optimizer, self._ranks = optimizer, ranks
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._owners = assign_owners([weight.numel() for weight in self._weights], ranks.world)
        self._mine = {index for index, owner in enumerate(self._owners) if owner == ranks.rank}
        optimizer.register_step_pre_hook(self._drop_others)
        optimizer.register_step_post_hook(self._broadcast_shares)

    def _drop_others(self, *_: Any) -> None:
        for index, weight in enumerate(self._weights):
            if index not in self._mine:
                weight.grad = None

    def _broadcast_shares(self, *_: Any) -> None:
        import torch.distributed as dist

        for rank in range(self._ranks.world):
            share = [
                weight.detach() for weight, owner in zip(self._weights, self._owners, strict=True) if owner == rank
            ]
            send_in_buckets(share, partial(dist.broadcast, src=rank), write=rank != self._ranks.rank)

    def gather_state(self) -> dict[str, Any]:
        """On rank 0, the optimiser's complete state, as with `ddp`; the part of other ranks is in host memory. On the
        other ranks, {}."""
        from accelerate.utils import send_to_device

        state: dict[str, Any] = self._optimizer.state_dict()
        found = {}
        for index, owner in enumerate(self._owners):
            held = state["state"].get(index)
            if owner != 0:  # one weight at a time, so that they are not all in memory twice
                held = self._ranks.send_to_first(send_to_device(held, "cpu"), owner)
            if held is not None:
                found[index] = held
        return {**state, "state": found} if self._ranks.first else {}

    def load(self, saved: dict[str, Any]) -> None:
        """Load this rank's share of a complete state, as `gather_state` returns it."""
        # Copies: the rest of the file must not stay in memory.
        mine = {index: copy.deepcopy(state) for index, state in saved["state"].items() if index in self._mine}
        self._optimizer.load_state_dict({**saved, "state": mine})

    def gather_pieces(self, values: Sequence[T]) -> list[T]:
        """One value per weight, in the optimiser's order, from the rank that owns it."""
        gathered = self._ranks.gather({index: values[index] for index in self._mine})
        return [gathered[owner][index] for index, owner in enumerate(self._owners)]
