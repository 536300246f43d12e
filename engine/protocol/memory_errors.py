"""Recognises from an error's text that memory ran out, on a device or on the host. Torch-free: the supervisor reads
logs with it."""

from __future__ import annotations

import re
from typing import Literal

DEVICE_PATTERNS = (
    r"\bOutOfMemoryError\b",  # torch.OutOfMemoryError, torch.cuda.OutOfMemoryError
    # CUDA error: …, Triton Error [CUDA]: …, MPS backend …
    r"\b(?:CUDA|HIP|XPU|MPS|Triton)\b[^\n]{0,60}?\bout of memory\b",
    r"\b(?:CUBLAS|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS)_STATUS_ALLOC_FAILED\b",
    r"\bCUDNN_STATUS_(?:ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)\b",
    r"\bCuda failure (?:2\b|'out of memory')",  # NCCL
    r"\bInvalid buffer size: [\d.]+ [MGT]i?B\b",  # MPS, for one tensor beyond the largest buffer
    r"\bError out of memory at line \d+",  # bitsandbytes, which then ends the process
)
"""What the drivers and libraries of accelerators write. `Triton … out of resource` is about a kernel's shared memory:
not here."""

HOST_PATTERNS = (
    r"\bMemoryError\b",
    r"\b(?:can't|[Cc]annot|[Uu]nable to|[Ff]ailed to) allocate memory\b",  # torch's CPU allocator, and errno ENOMEM
    r"\bDefaultCPUAllocator: not enough memory\b",
    r"\bnot enough memory: you tried to allocate\b",
    r"\bUnable to allocate [\d.]+ [KMGTP]iB\b",  # numpy
    r"\bbad_alloc\b",
    r"\bmemory allocation of \d+ bytes failed\b",  # Rust: tokenizers, safetensors
)
"""What the allocators of the host's memory write."""

_DEVICE, _HOST = (re.compile("|".join(patterns)) for patterns in (DEVICE_PATTERNS, HOST_PATTERNS))


def find_exhausted_memory(text: str) -> Literal["device", "host", ""]:
    """Which memory ran out according to `text` (an exception's or a log's); empty when it does not say so."""
    if _DEVICE.search(text):
        return "device"
    return "host" if _HOST.search(text) else ""
