"""What this process does on its accelerator, through torch's device-neutral calls: set-up, memory figures, release."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import psutil

from engine.protocol.messages import Rank

_chosen: int | None = None
"""The index of this process's device. torch's own notion of a current device is kept for each thread, and the thread of
the heartbeat would ask about device 0."""


def choose(device: str) -> None:
    """Make `device`, by torch's name (`cuda:1`, `cpu`), the one that this process computes on."""
    import torch

    global _chosen
    kind, _, index = device.partition(":")
    _chosen = None if kind == "cpu" else int(index or 0)
    if _chosen is not None:
        torch.accelerator.set_device_index(_chosen)
    set_up_torch()


def set_up_torch() -> None:
    """Prepare torch before a model is loaded.

    cuDNN's attention is off: torch prefers it on compute capability 9.0 and 10.0, where it builds a plan of about half
    a second for every new shape, and nearly every micro-batch of joined rows and every decoded token is a new shape.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def measure_memory(rank: Rank) -> None:
    """Set the memory figures of a heartbeat, in bytes. Called from the link's thread, also before torch is imported."""
    import sys

    rank.resident = psutil.Process().memory_info().rss
    torch = sys.modules.get("torch")
    if torch is None or _chosen is None:
        return
    figures = _read_statistics(torch)
    rank.device_used = figures.get("allocated_bytes.all.current", 0)
    rank.device_reserved = figures.get("reserved_bytes.all.current", 0)
    rank.device_peak = figures.get("allocated_bytes.all.peak", 0)


def read_peak() -> int | None:
    """The peak of this process's device memory in bytes; None without an accelerator or where it keeps no figures."""
    import torch

    return _read_statistics(torch).get("allocated_bytes.all.peak") if _chosen is not None else None


def read_room() -> int | None:
    """The memory of this process's device in bytes, without what others hold of it; None where that is unknown."""
    import torch

    if _chosen is None:
        return None
    try:
        free = int(torch.accelerator.get_memory_info(_chosen)[0])
    except (RuntimeError, NotImplementedError):
        return None
    return free + _read_statistics(torch).get("reserved_bytes.all.current", 0)


def reset_peak() -> None:
    """Let the peak of this process's device memory begin anew, at what is allocated now. Has no effect without an
    accelerator, or where it keeps no figures."""
    import torch

    if _chosen is not None:
        with contextlib.suppress(RuntimeError):
            torch.accelerator.reset_peak_memory_stats(_chosen)


def release() -> None:
    """Return unused memory to the device. Has no effect where nothing has been allocated."""
    import torch

    gc.collect()
    # RuntimeError: there is no accelerator, or its back end has no caching allocator.
    with contextlib.suppress(RuntimeError):
        torch.accelerator.empty_cache()


def synchronize(device: Any) -> None:
    """Wait until `device` (a torch.device or its name) has computed everything it was given. A CPU already has."""
    import torch

    if torch.device(device).type == "cpu":
        return
    try:
        torch.accelerator.synchronize()
    except (RuntimeError, NotImplementedError):  # also where a back end cannot do that
        torch.ones(1, device=device).item()  # which raises where the device has failed


def free_bytes(device: Any) -> int:
    """Free bytes of the memory of `device` (a torch.device or its name), which for a CPU is the host's."""
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except (RuntimeError, NotImplementedError):  # the back end does not say; MPS shares the host's memory
        return int(psutil.virtual_memory().available)


def _read_statistics(torch: Any) -> dict[str, int]:
    """The allocator's statistics; empty for a back end that keeps none, and before it has allocated."""
    try:
        statistics: dict[str, int] = torch.accelerator.memory_stats(_chosen)
    except RuntimeError:
        return {}
    return statistics
