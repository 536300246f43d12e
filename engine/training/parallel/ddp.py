"""`launch.strategy: ddp`: every rank has the whole model and optimiser, and computes a share of each global batch.

The ranks compute their micro-batches without communicating and sum their gradients once per global batch. torch's
DistributedDataParallel would reduce during the last backward pass: a rank that ran out of memory there could not report
it, and the others would wait for it until the collective times out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from engine.training.parallel.single import SingleProcess

BUCKET = 32 * 2**20
"""Bytes that are sent in one collective."""


class DataParallel(SingleProcess):
    """The same weights on all ranks: gradients are sums over the ranks."""

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        import torch.distributed as dist

        super().prepare(model, make_optimizer)
        weights = [weight.detach() for weight in self.model.parameters() if weight.requires_grad]
        send_in_buckets(weights, partial(dist.broadcast, src=0))

    def reduce(self) -> None:
        import torch
        import torch.distributed as dist

        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:  # unused in this rank's rows, not in another's
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        send_in_buckets(gradients, dist.all_reduce)


def send_in_buckets(tensors: list[Any], collective: Callable[[Any], object], *, write: bool = True) -> None:
    """Run `collective`, which works in place on a flat tensor, on buckets of `tensors`; with `write`, copy its result
    back."""
    import torch
    from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

    with torch.no_grad():
        for bucket in _take_tensors(tensors, BUCKET):
            flat = _flatten_dense_tensors(bucket)
            collective(flat)
            if write:
                for tensor, sent in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                    tensor.copy_(sent)
