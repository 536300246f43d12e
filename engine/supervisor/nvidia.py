"""NVIDIA devices through NVML (`nvidia-ml-py`). Without a driver there are no devices, and `note` says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import pynvml

from engine.protocol.messages import Device, DeviceProcess

T = TypeVar("T")


class Nvidia:
    def __init__(self) -> None:
        self.note = ""
        self.count = 0
        try:
            pynvml.nvmlInit()
            self.count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.note = f"no NVIDIA driver: {error}"

    def sample_devices(self) -> list[Device]:
        """One sample of every device. A query that a device does not support gives None; a lost device is left out and
        named in `note`."""
        found = []
        for index in range(self.count):
            try:
                found.append(_sample_device(index, pynvml.nvmlDeviceGetHandleByIndex(index)))
            except pynvml.NVMLError as error:
                self.note = f"device {index}: {error}"
        return found


def _sample_device(index: int, handle: Any) -> Device:
    memory = _query(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _query(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _query(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = _query(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    name = pynvml.nvmlDeviceGetName(handle)
    return Device(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        memory_used=memory.used if memory else None,
        memory_total=memory.total if memory else None,
        utilisation=float(rates.gpu) if rates else None,
        temperature=_query(lambda h: float(pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)), handle),
        power=power / 1000 if power is not None else None,
        power_limit=limit / 1000 if limit is not None else None,
        processes=[
            _describe_process(entry) for entry in _query(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        ],
    )


def _query(query: Callable[[Any], T], handle: Any) -> T | None:
    try:
        return query(handle)
    except pynvml.NVMLError_NotSupported:
        return None


def _describe_process(entry: Any) -> DeviceProcess:
    try:
        process = psutil.Process(entry.pid)
        user, name = process.username(), process.name()
    except psutil.Error:  # a process of another container: NVML lists it, and the kernel hides it
        user, name = "", ""
    return DeviceProcess(pid=entry.pid, user=user, name=name, memory=entry.usedGpuMemory or 0)
