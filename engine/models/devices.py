"""Chooses the device of a rank and the dtype that it computes in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from engine.hardware import wheels
from engine.models import accelerator
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line

_KNOWN_TO_ACCELERATE = frozenset({"cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "sdaa", "neuron"})


@dataclass(frozen=True)
class Device:
    """`name` is torch's name (`cuda:0`, `cpu`); `compute` the dtype of matrix products."""

    name: str
    compute: Any
    label: str

    @property
    def kind(self) -> str:
        """Which kind of device the run is computed on: `cuda`, `cpu` …"""
        return self.backend

    @property
    def backend(self) -> str:
        """The kind of device that the tensors are on. In a forecast that is the CPU, whatever `kind` is."""
        return self.name.partition(":")[0]

    def autocast(self) -> Any:
        """The autocast for forward passes without a trainer; none in float32, since not every back end can disable
        it."""
        import torch

        return nullcontext() if self.compute == torch.float32 else torch.autocast(self.backend, dtype=self.compute)


def find_accelerator() -> str:
    """The type of the accelerator that torch can use, else `cpu`."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def choose_device(kind: str, local: int, dtype: str) -> Device:
    """Choose this rank's device. Raises ProblemError when it cannot compute in `dtype`, or when there are fewer devices
    than ranks."""
    import torch

    if kind == "cpu":
        accelerator.choose(kind)
        return Device("cpu", choose_cpu_dtype(getattr(torch, dtype)), f"{os.cpu_count()} CPU cores")
    count = torch.accelerator.device_count()
    if local >= count:
        raise ProblemError(
            Problem(
                code="device.too_few",
                title=f"There is no device for rank {local}: the host has {count}",
                hint=f"set launch.processes to {count} or less, or make more devices visible",
            )
        )
    accelerator.choose(f"{kind}:{local}")
    label = torch.cuda.get_device_name(local) if kind == "cuda" else kind
    if kind == "cuda":
        _check_kernels(local, label)
    if refusal := _explain_unsupported(f"{kind}:{local}", dtype):
        raise ProblemError(
            Problem(
                code="device.unsupported",
                title=f"{label} does not compute in {dtype}",
                cause=f"model.dtype is {dtype}; {refusal}",
                hint=f"set model.dtype to {'float16, or float32' if dtype == 'bfloat16' else 'float32'}",
            )
        )
    if kind not in _KNOWN_TO_ACCELERATE:
        # Without this, accelerate would put every batch on the CPU: it knows devices by name.
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"{kind}:{local}"
    return Device(f"{kind}:{local}", getattr(torch, dtype), label)


def _check_kernels(local: int, label: str) -> None:
    """Raises ProblemError when this torch was built without kernels for the card."""
    import torch

    architectures, cuda = torch.cuda.get_arch_list(), torch.version.cuda
    if not architectures or not cuda:  # AMD's names are others
        return
    capability = torch.cuda.get_device_capability(local)
    if not wheels.has_kernels(capability, architectures):
        raise ProblemError(
            Problem(
                code="device.no_kernels",
                title=f"This torch cannot compute on {label}",
                cause=f"{wheels.describe_lack(label, capability, cuda)}; it has {' '.join(architectures)}",
                hint=wheels.suggest(capability, cuda),
            )
        )


def _explain_unsupported(device: str, dtype: str) -> str:
    """Why this device cannot train in `dtype`; empty when it can.

    A product, its gradient and torch's autocast are tried out, unless the device would only emulate the dtype.
    """
    import torch

    if (
        device.startswith("cuda")
        and dtype == "bfloat16"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return "this card would only emulate it"
    kind, wanted = device.partition(":")[0], getattr(torch, dtype)
    try:
        left = torch.ones(2, 2, dtype=wanted, device=device, requires_grad=True)
        (left @ left).sum().backward()
        if dtype != "float32":
            torch.autocast(kind, dtype=wanted)
    except (RuntimeError, TypeError, AssertionError) as error:
        return first_line(error)
    return ""


def choose_cpu_dtype(dtype: Any) -> Any:
    """The dtype in which this CPU multiplies matrices fastest without losing precision: `dtype` itself, or float32.

    It is measured: with AMX or AVX512-BF16, bfloat16 is up to six times as fast as float32, without them a seventh as
    fast. float16 on a CPU always computes in float32, since there is no loss scaling.
    """
    import torch

    if dtype != torch.bfloat16:
        return torch.float32
    return dtype if _time_product(dtype) < _time_product(torch.float32) else torch.float32


def _time_product(dtype: Any) -> float:
    """CPU time of a 256 × 512 × 512 matrix product on one thread, the best of three. Other processes hardly affect
    it."""
    import torch

    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_measure(torch.nn.functional.linear, left, right) for _ in range(3))
    finally:
        torch.set_num_threads(threads)


def _measure(function: Callable[..., object], *arguments: object) -> float:
    start = time.thread_time()
    function(*arguments)
    return time.thread_time() - start


def set_threads(number: int | None, world: int) -> int:
    """Set the CPU threads of this rank, and return their number: `number`, else its share of the cores."""
    import torch

    threads = number or max(1, len(os.sched_getaffinity(0)) // world)
    torch.set_num_threads(threads)
    return threads
