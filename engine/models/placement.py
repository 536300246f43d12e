"""Chooses the device for a model: the one with most free memory, if the model fits. Otherwise it says what uses the
memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.models.weights import DamagedFile, read_header
from engine.protocol.messages import Problem, ProblemError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.1, "nf4": 0.65}
"""Bytes per parameter, including the parts of a quantised model that are not quantised."""
OVERHEAD = 1.2
"""A factor on the size of the weights for the cache, activations and the allocator."""


def estimate_bytes(folder: Path, kind: str | None) -> int:
    """Bytes that the model in `folder` will take in `kind`, a dtype or quantisation (None: as stored); 0 when
    unknown."""
    total = 0.0
    for path in folder.glob("*.safetensors"):
        try:
            tensors = read_header(path).values()
        except DamagedFile:
            return 0
        for tensor in tensors:
            elements = 1
            for size in tensor.shape:
                elements *= size
            total += elements * BYTES[kind] if kind else tensor.end - tensor.begin
    return int(total * OVERHEAD)


def choose(needed: int) -> str:
    """The device: `cuda:N`, another accelerator's name, or `cpu`. Raises ProblemError, with figures, when no GPU has
    `needed` bytes free."""
    import torch

    if not torch.cuda.is_available():
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return str(accelerator) if accelerator else "cpu"
    free = {index: torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())}
    best = max(free, key=lambda index: free[index])
    if free[best] < needed:
        raise ProblemError(
            Problem(
                code="memory.device_full",
                title="No device has room for this model",
                cause=f"it needs about {needed / 1e9:.1f} GB; "
                + "; ".join(
                    f"GPU {index} has {room / 1e9:.1f} GB free ({_describe_holders(index)})"
                    for index, room in free.items()
                ),
                hint=(
                    "stop one of these processes, choose a quantisation (nf4 takes a quarter), "
                    "or use the CPU with CUDA_VISIBLE_DEVICES="
                ),
            )
        )
    return f"cuda:{best}"


def _describe_holders(index: int) -> str:
    """Describe the processes on a GPU, largest first, for a message."""
    import psutil
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"  # torch counts only visible devices
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return "used by processes that cannot be listed"
    largest = sorted(found, key=lambda process: process.usedGpuMemory or 0, reverse=True)[:3]
    return ", ".join(_describe_process(process, psutil) for process in largest) or "used by no visible process"


def _describe_process(process: Any, psutil: Any) -> str:
    size = f"{(process.usedGpuMemory or 0) / 1e9:.1f} GB"
    try:
        owner = psutil.Process(process.pid)
        return f"{owner.name()} of {owner.username()}, pid {process.pid}: {size}"
    except psutil.Error:
        return f"pid {process.pid}: {size}"
