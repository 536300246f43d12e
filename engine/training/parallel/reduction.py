"""Sums gradients over the ranks, bucket by bucket, while the last backward pass of a step still computes others.

The buckets are the same in every step and on every rank: trained weights in the order in which a backward pass finds
their gradients, the last layers first. A bucket is sent when its gradients and those of all buckets before it are
there. So all ranks send the same buckets in the same order, whichever gradients come first.

A rank that runs out of memory in that pass sends zeros for what it has not sent: the others would wait for it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from engine.training.ranks import Ranks

LARGEST = 128 * 2**20
"""Bytes that one collective sends at most, unless one gradient is larger. Each needs a buffer of this size."""
LEAST = 4 * 2**20
"""Smaller collectives take mostly latency."""
BUCKETS = 8
"""Number of buckets into which the gradients of a small adapter are divided, so that most of them are sent early."""
IN_FLIGHT = 2
"""The largest number of collectives that run at the same time."""

Finish = Callable[[], None]


class Reduction:
    """Sums the gradients of `weights`, in the model's order, over the ranks."""

    def __init__(self, weights: Sequence[Any], ranks: Ranks, *, bucket: int | None = None) -> None:
        self._ranks = ranks
        self._buckets = make_buckets(weights, bucket)
        self._bucket_of = {weight: number for number, weights in enumerate(self._buckets) for weight in weights}
        self._found: Counter[Any] = Counter()
        """How often the pass has added to the gradient of each weight."""
        self._next = 0
        """The bucket that is sent next; all buckets before it have been sent."""
        self._early: bool | None = None
        """Whether buckets are sent within the pass; None until one pass has been watched."""
        self._armed = False
        self._waited = 0.0
        self._in_flight: deque[Finish] = deque()
        self._stream = _make_stream(weights[0].device) if weights else None
        for weight in self._bucket_of:
            weight.register_post_accumulate_grad_hook(self._take)

    def arm(self) -> None:
        """Send each bucket as soon as the coming backward pass has found its gradients.

        The first pass is only watched: where a pass adds to a gradient more than once, as with nested passes, no
        bucket is complete before its end.
        """
        self._found.clear()
        self._armed = True

    def flush(self) -> None:
        """Send the buckets that the pass has left, as some weights had no gradient in this rank's rows."""
        if self._armed and self._early is None and self._found:
            self._early = max(self._found.values()) == 1
        self._armed = False
        while self._next < len(self._buckets):
            self._send(self._buckets[self._next])

    def wait(self) -> None:
        """Return when the gradients are the sums of all ranks'; a device need not have computed them yet."""
        self.flush()
        self._settle()

    def take_waited(self) -> float:
        """The seconds since the last call in which a pass has waited for sums, as on a CPU."""
        waited, self._waited = self._waited, 0.0
        return waited

    def abandon(self) -> None:
        """Drop all gradients, which makes room, and send zeros for the buckets that have not been sent."""
        import torch
        import torch.distributed as dist

        self._armed = False
        rest = self._buckets[self._next :]
        self._settle()
        for weight in self._bucket_of:
            weight.grad = None
        for bucket in rest:
            size = sum(weight.numel() for weight in bucket)
            dist.all_reduce(torch.zeros(size, dtype=bucket[0].dtype, device=bucket[0].device))

    def _settle(self) -> None:
        """Wait for all that has been sent."""
        with self._beside():
            while self._in_flight:
                self._in_flight.popleft()()
        if self._stream is not None:
            _current_stream(self._stream.device).wait_stream(self._stream)
        self._next = 0

    def _take(self, weight: Any) -> None:
        """A backward pass has added to the gradient of `weight`."""
        if not self._armed:
            return
        assert self._bucket_of[weight] >= self._next, "a gradient was added to after it had been sent"
        self._found[weight] += 1
        while self._early and self._next < len(self._buckets) and self._is_complete(self._buckets[self._next]):
            self._send(self._buckets[self._next])

    def _is_complete(self, bucket: Sequence[Any]) -> bool:
        return all(weight in self._found for weight in bucket)

    def _send(self, bucket: Sequence[Any]) -> None:
        import torch
        import torch.distributed as dist

        for weight in bucket:
            if weight.grad is None:  # unused in this rank's rows, not in another's
                weight.grad = torch.zeros_like(weight)
        if self._stream is not None:
            self._stream.wait_stream(_current_stream(bucket[0].device))
        with self._beside():
            if len(self._in_flight) == IN_FLIGHT:
                began = time.perf_counter()
                with self._ranks.waiting():
                    self._in_flight.popleft()()
                self._waited += time.perf_counter() - began
            self._in_flight.append(start(dist.all_reduce, [weight.grad for weight in bucket]))
        self._next += 1

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Context of work beside that of the pass: on a stream of its own, if the device has streams."""
        with self._stream if self._stream is not None else nullcontext():
            yield


def make_buckets(weights: Sequence[Any], size: int | None = None) -> list[list[Any]]:
    """`weights` from the last to the first, in buckets of at most `size` bytes and of one dtype and device each; in the
    order in which they are complete."""
    total = sum(weight.numel() * weight.element_size() for weight in weights)
    size = size or min(LARGEST, max(LEAST, total // BUCKETS))
    found: list[list[Any]] = []
    open_ones: dict[Any, tuple[list[Any], int]] = {}
    for weight in reversed(weights):
        key, more = (weight.dtype, weight.device), weight.numel() * weight.element_size()
        bucket, held = open_ones.get(key, ([], 0))
        if bucket and held + more > size:
            found.append(bucket)
            bucket, held = [], 0
        bucket.append(weight)
        open_ones[key] = (bucket, held + more)
    return [*found, *(bucket for bucket, _ in open_ones.values())]


def start(
    collective: Callable[..., Any],
    tensors: Sequence[Any],
    *,
    write: bool = True,
) -> Finish:
    """Begin `collective`, which works in place on a flat tensor, on `tensors` of one dtype. The function that is
    returned waits for it and, with `write`, copies its result back."""
    import torch
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

    with torch.no_grad():
        flat = _flatten_dense_tensors(tensors)
    work = collective(flat, async_op=True)

    def finish() -> None:
        work.wait()
        if write:
            with torch.no_grad():
                torch._foreach_copy_(list(tensors), list(_unflatten_dense_tensors(flat, tensors)))

    return finish


def send_in_buckets(
    tensors: list[Any], collective: Callable[..., Any], *, write: bool = True, bucket: int = LARGEST
) -> None:
    """Run `collective` (see `start`) on buckets of `tensors`, one of which is filled while another is sent."""
    from torch._utils import _take_tensors

    sent: deque[Finish] = deque()
    for parts in _take_tensors(tensors, bucket):
        sent.append(start(collective, parts, write=write))
        if len(sent) == IN_FLIGHT:
            sent.popleft()()
    while sent:
        sent.popleft()()


def _make_stream(device: Any) -> Any:
    """A stream of the device, on which work waits for collectives while a pass goes on; None for a CPU, and for a back
    end without streams."""
    import torch

    if device.type == "cpu":
        return None
    try:
        return torch.Stream(device=device)
    except (RuntimeError, NotImplementedError):
        return None


def _current_stream(device: Any) -> Any:
    import torch

    return torch.accelerator.current_stream(device)
