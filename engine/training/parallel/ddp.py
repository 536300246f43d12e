"""`launch.strategy: ddp`: every rank has the whole model and optimiser, and computes a share of each global batch.

The ranks compute their micro-batches without communicating and sum their gradients once per global batch. torch's
DistributedDataParallel would reduce during the last backward pass: a rank that ran out of memory there could not report
it, and the others would wait for it until the collective times out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from engine.training.parallel.single import SingleProcess

BUCKET = 64 * 2**20
"""Bytes that one collective sends. Each needs a buffer of this size, and larger buckets are hardly faster."""
IN_FLIGHT = 2
"""The largest number of collectives that run at the same time."""


class DataParallel(SingleProcess):
    """All ranks have the same weights, and sum their gradients."""

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


def send_in_buckets(
    tensors: list[Any], collective: Callable[..., Any], *, write: bool = True, bucket: int = BUCKET
) -> None:
    """Run `collective`, which works in place on a flat tensor, on buckets of `tensors`; with `write`, copy its result
    back.

    While one bucket is sent, the next is filled; `IN_FLIGHT` says how many are in memory at the same time.
    """
    import torch
    from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

    sent: deque[tuple[list[Any], Any, Any]] = deque()

    def receive() -> None:
        parts, flat, work = sent.popleft()
        work.wait()
        if write:
            for tensor, result in zip(parts, _unflatten_dense_tensors(flat, parts), strict=True):
                tensor.copy_(result)

    with torch.no_grad():
        for parts in _take_tensors(tensors, bucket):
            flat = _flatten_dense_tensors(parts)
            sent.append((parts, flat, collective(flat, async_op=True)))
            if len(sent) == IN_FLIGHT:
                receive()
        while sent:
            receive()
