"""Registers the test back end that slate.cpp is with torch's accelerator API, and trains on it: `python -m … LIBRARY
HOME PREPARED`.

In a process of its own, since torch takes one such back end for good. Prints what the test looks at as one JSON
document.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

NAME = "slatecl"


def register(library: str) -> None:
    """`torch.device("slate")`, as a vendor's package would make it."""
    torch.utils.rename_privateuse1_backend("slate")
    torch.ops.load_library(library)
    module = types.ModuleType("torch.slate")
    said = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda _: None,
    }
    for name, answer in said.items():
        setattr(module, name, answer)
    torch._register_device_module("slate", module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


class Collectives(dist.ProcessGroup):
    """A vendor's collectives: gloo on copies in the host's memory."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._host = dist.ProcessGroupGloo(dist.PrefixStore("slate", store), rank, size, timeout)

    def getBackendName(self) -> str:
        return NAME

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> dist.Work:
        return self._carry(tensors, lambda copies: self._host.allreduce(copies, options or dist.AllreduceOptions()))

    def broadcast(self, tensors: list[torch.Tensor], options: Any = None) -> dist.Work:
        return self._carry(tensors, lambda copies: self._host.broadcast(copies, options or dist.BroadcastOptions()))

    def _carry(self, tensors: list[torch.Tensor], collective: Callable[[list[torch.Tensor]], dist.Work]) -> dist.Work:
        copies = [tensor.cpu() for tensor in tensors]
        work = collective(copies)
        work.wait()
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
        return work


def register_collectives() -> None:
    """Let two ranks train on the one slate that this host has."""
    from engine.models import devices

    dist.Backend.register_backend(NAME, Collectives, devices=["slate"])
    choose = devices.choose_device
    devices.choose_device = lambda kind, _, dtype: choose(kind, 0, dtype)


def main(library: str, folder: str, prepared: str, *changes: str) -> None:
    register(library)
    from engine.protocol.home import Home
    from engine.protocol.journal import Evaluation, Start
    from engine.protocol.messages import ProblemError
    from tests.training.in_process import entries, series, train

    home, rows = Home(Path(folder)), json.loads(Path(prepared).read_text())
    run = train(home, "run", rows, *changes)
    losses = series(run, "train/loss")
    train(home, "run", rows, *changes, from_step=2)
    try:
        train(home, "half", rows, *changes, "model.dtype=float16")
        refusal = ""
    except ProblemError as error:
        refusal = error.problem.title
    starts = entries(run, Start)
    found = {
        "device": starts[0].facts["device"],
        "resumed": starts[-1].resumed,
        "losses": losses,
        "again": series(run, "train/loss"),
        "held_out": [entry.values["eval/loss"] for entry in entries(run, Evaluation)],
        "refusal": refusal,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
