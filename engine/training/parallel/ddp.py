"""`launch.strategy: ddp`: every rank has the whole model and optimiser, and computes a share of each global batch.

The ranks compute their micro-batches without communicating, up to the last backward pass of a global batch. Before that
pass they vote whether all of them have had enough memory so far, and during it they sum their gradients
(`engine.training.parallel.reduction`). torch's DistributedDataParallel knows no vote: a rank that ran out of memory
could not report it, and the others would wait for it until the collective times out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from engine.training.parallel.reduction import Reduction, send_in_buckets
from engine.training.parallel.single import SingleProcess


class DataParallel(SingleProcess):
    """All ranks have the same weights, and sum their gradients."""

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        import torch.distributed as dist

        super().prepare(model, make_optimizer)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        send_in_buckets([weight.detach() for weight in weights], partial(dist.broadcast, src=0))
        self._reduction = Reduction(weights, self.ranks)
        self._under_way = False

    def begin_reduction(self, *, failed: bool) -> None:
        (failures,) = self.ranks.sum([failed])
        self._under_way = not failures
        if self._under_way:
            self._reduction.arm()

    def end_pass(self) -> None:
        if self._under_way:
            self._reduction.flush()

    def take_waited(self) -> float:
        return self._reduction.take_waited()

    def reduce(self) -> None:
        self._reduction.wait()
        self._under_way = False

    def drop(self) -> None:
        if self._under_way:
            self._reduction.abandon()
            self._under_way = False
        super().drop()
