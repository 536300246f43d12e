"""Out of memory is recognised whatever library reports it, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch

from engine.models.memory import is_out_of_memory
from engine.protocol.memory_errors import find_exhausted_memory

DEVICE = [
    (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB "
        "of which 1.02 GiB is free."
    ),
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "HIP out of memory. Tried to allocate 20.00 MiB.",
    "XPU out of memory. Tried to allocate 8.00 GiB (GPU 0; 63.98 GiB total capacity)",
    "MPS backend out of memory (MPS allocated: 8.15 GB, other allocations: 704.00 KB, max allowed: 9.07 GB).",
    "Invalid buffer size: 19.45 GB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "Triton Error [CUDA]: out of memory",
    "NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 'out of memory'",
    "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
]
HOST = [
    (
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8 bytes."
    ),
    "DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes.",
    "unable to mmap 540000000 bytes from file <model.safetensors>: Cannot allocate memory (12)",
    "unable to allocate memory",
    "std::bad_alloc",
]
OTHER = [
    "",
    "shapes do not match",
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block sizes may help.",
    "Cuda failure 217 'peer access is not supported between these two devices'",
    "the memory format of the tensor is not contiguous",
    "No space left on device",
]


@pytest.mark.parametrize("text", DEVICE)
def test_a_device_out_of_memory(text: str) -> None:
    assert find_exhausted_memory(f"Traceback (most recent call last):\nRuntimeError: {text}\n") == "device"
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", HOST)
def test_the_host_out_of_memory(text: str) -> None:
    assert find_exhausted_memory(f"Traceback (most recent call last):\nRuntimeError: {text}\n") == "host"
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHER)
def test_other_errors(text: str) -> None:
    assert find_exhausted_memory(f"Traceback (most recent call last):\nRuntimeError: {text}\n") == ""
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("more than 5 tokens"),
        torch.cuda.OutOfMemoryError(),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        MemoryError(),
        OSError(12, "Nicht genügend Hauptspeicher verfügbar"),
        type("_ArrayMemoryError", (MemoryError,), {})(
            "Unable to allocate 7.45 GiB for an array with shape (1000000000,)"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_classes_of_errors(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_an_error_of_the_allocator_that_is_real() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(raised.value), raised.value


def test_the_exceptions_that_an_error_was_raised_from() -> None:
    outer = RuntimeError("the forward pass failed")
    outer.__cause__ = KeyError("x")
    assert not is_out_of_memory(outer)
    outer.__cause__.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert is_out_of_memory(outer)
    looping = RuntimeError("a")
    looping.__cause__ = looping
    assert not is_out_of_memory(looping)


def test_a_quoted_text_is_no_error_of_the_memory() -> None:
    assert not is_out_of_memory(ValueError("row 3: 'CUDA out of memory' is not a label"))
