"""The ranks of a job, and their communication besides gradients.

It uses a gloo group on the CPU, whatever the backend of the gradients: it costs a tenth of a millisecond per step and
does not wait for a device. With a single rank, nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from engine.protocol.messages import Problem, ProblemError

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for a rank that is loading or evaluating. The launcher notices a dead rank at once."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` ranks. `group` is the gloo group, None for a single rank."""

    rank: int = 0
    local: int = 0
    world: int = 1
    group: Any = None
    on_wait: Callable[[bool], None] = lambda begins: None
    """Called with True when this rank begins to wait for the others, with False when the wait ends."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which this rank counts as waiting for the others, if there are any."""
        if self.group is None:
            yield
            return
        self.on_wait(True)
        yield
        self.on_wait(False)

    @property
    def first(self) -> bool:
        """Whether this rank writes the journal and the checkpoints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, element by element."""
        if self.group is None:
            return list(values)
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(total, group=self.group)
        summed: list[float] = total.tolist()
        return summed

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.group is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        with self.waiting():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        if self.group is None:
            return value
        import torch.distributed as dist

        box = [value]
        with self.waiting():
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def send_to_first(self, value: Any, source: int) -> Any:
        """On rank 0, the value of rank `source`, which is not 0; on other ranks, `value`."""
        import torch.distributed as dist

        box = [value]
        if self.rank in (0, source):
            with self.waiting():
                if self.first:
                    dist.recv_object_list(box, src=source, group=self.group)
                else:
                    dist.send_object_list(box, dst=0, group=self.group)
        return box[0]


def read_place() -> tuple[int, int, int]:
    """Rank, local rank and number of ranks, from torchrun's environment variables; 0, 0, 1 without them. Torch-free."""
    return tuple(int(os.environ.get(name, default)) for name, default in _VARIABLES)  # type: ignore[return-value]


def count_local() -> int:
    """The number of ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)


_VARIABLES = (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))


def find_backend(device_kind: str) -> str:
    """The back end of torch.distributed for tensors of this device. Raises ProblemError where there is none."""
    import torch.distributed as dist

    try:
        return str(dist.get_default_backend_for_device(device_kind))
    except ValueError:
        raise ProblemError(
            Problem(
                code="device.no_collectives",
                title=f"Several processes cannot train on {device_kind}",
                cause=f"torch.distributed has no back end for {device_kind} tensors in this environment",
                hint="set launch.processes to 1, or install the vendor's package of collectives",
            )
        ) from None


def join_ranks(device_kind: str) -> Ranks:
    """Join the process group. Gradients use the back end that torch names for the device: NCCL on CUDA, XCCL on XPU, a
    vendor's own; gloo on a CPU."""
    rank, local, world = read_place()
    if world == 1:
        return Ranks()
    import torch.distributed as dist

    backend = find_backend(device_kind)
    # Shares that are kept in host memory are gathered there.
    both = backend if device_kind == "cpu" else f"cpu:gloo,{device_kind}:{backend}"
    dist.init_process_group(both, timeout=TIMEOUT)
    return Ranks(rank, local, world, dist.new_group(backend="gloo", timeout=TIMEOUT))
