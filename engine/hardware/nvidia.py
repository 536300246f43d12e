"""NVIDIA devices through NVML (`nvidia-ml-py`). Each query is guarded by itself: what a driver refuses or a device does
not have is None, and costs no other figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pynvml

from engine.hardware import health, owners
from engine.protocol.messages import Device, DeviceProcess, Health

T = TypeVar("T")
RETRY = 10.0
"""Seconds until NVML is asked again where it could not be started: a driver may be loaded later."""
RARELY = 30.0
"""Seconds for which figures count that hardly ever change."""
_FAILURES = (pynvml.NVMLError, OSError, ValueError, TypeError, AttributeError)
"""What a query may end with. A missing function of an older driver is an NVMLError or an AttributeError."""


class Nvidia:
    """`note` says why there are no devices, or which queries are refused. With `watch`, the Xid errors of all cards are
    collected from the first sample on."""

    def __init__(self, *, watch: bool = False) -> None:
        self.note = ""
        self._watch = health.XidWatch(pynvml, self._quietly) if watch else None
        self._rare: dict[str, tuple[float, dict[str, Any]]] = {}
        """By the address of a card: figures that hardly ever change, and when they were read."""
        self._started = False
        self._tried_at = -RETRY
        self._refused: dict[str, str] = {}

    @property
    def count(self) -> int:
        """How many cards NVML counts now."""
        return self._count() or 0

    def sample_devices(self) -> list[Device]:
        """One sample of every device. Cards are counted anew each time; one that cannot be reached stays in the list,
        without figures."""
        count = self._count()
        if count is None:
            return []
        self._refused = {}
        if self._watch:
            self._watch.poll(self._find_address)
        found: list[Device] = []
        instances: list[Device] = []
        ordinal = 0
        for index in range(count):
            handle = self._ask(f"device {index}", pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is None:
                found.append(Device(index=index, name="", processes=None))
                continue
            if self._is_divided(handle):
                whole = self._sample(index, handle)
                for part in self._list_instances(handle):
                    instances.append(self._sample_instance(count + len(instances), part, whole))
            else:
                device = self._sample(index, handle)
                device.ordinal = ordinal
                found.append(device)
            ordinal += 1
        self.note = "; ".join(f"{name}: {reason}" for name, reason in self._refused.items())
        return found + instances

    def sample_named(self, uuid: str) -> Device | None:
        """One sample of the device with this UUID; its index is not looked up."""
        if self._count() is None:
            return None
        if self._watch:
            self._watch.poll(self._find_address)
        handle = self._quietly(pynvml.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None:
            return None
        card = self._quietly(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)
        return self._sample(0, handle) if card is None else self._sample_instance(0, handle, self._sample(0, card))

    def _count(self) -> int | None:
        """The number of cards; None, with a note, where NVML cannot be asked."""
        if not self._started and time.monotonic() - self._tried_at < RETRY:
            return None
        try:
            if not self._started:
                self._tried_at = time.monotonic()
                pynvml.nvmlInit()
                self._started, self.note = True, ""
            return int(pynvml.nvmlDeviceGetCount())
        except _FAILURES as error:
            self.note = f"no NVIDIA driver: {error}"
            self._started = False
            return None

    def _ask(self, name: str, query: Callable[..., T], *arguments: Any) -> T | None:
        """The answer, or None. Why a query was refused is noted; that a device does not have the figure is not."""
        try:
            return query(*arguments)
        except pynvml.NVMLError_NotSupported:
            return None
        except _FAILURES as error:
            self._refused[name] = str(error)
            return None

    def _is_divided(self, handle: Any) -> bool:
        mode = self._quietly(pynvml.nvmlDeviceGetMigMode, handle)
        return bool(mode and mode[0])

    def _list_instances(self, handle: Any) -> Iterator[Any]:
        """The handles of a card's MIG instances."""
        for at in range(self._quietly(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._quietly(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, at)
            if instance is not None:
                yield instance

    def _quietly(self, query: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return query(*arguments)
        except _FAILURES:
            return None

    def _sample(self, index: int, handle: Any, whole: Device | None = None) -> Device:
        """`whole` is the card that the device is an instance of: address and health are the card's."""
        at = f"device {index}"
        memory = self._ask(f"{at} memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(f"{at} utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(f"{at} power", pynvml.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(f"{at} power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        heat = self._ask(f"{at} temperature", pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        capability = self._ask(f"{at} capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        address = whole.address if whole else self._find_address(handle)
        return Device(
            index=index,
            name=_text(self._ask(f"{at} name", pynvml.nvmlDeviceGetName, handle)),
            uuid=_text(self._ask(f"{at} uuid", pynvml.nvmlDeviceGetUUID, handle)),
            memory_used=memory.used if memory else None,
            memory_total=memory.total if memory else None,
            utilisation=float(rates.gpu) if rates else None,
            temperature=float(heat) if heat is not None else None,
            power=power / 1000 if power is not None else None,
            power_limit=limit / 1000 if limit is not None else None,
            capability=".".join(map(str, capability)) if capability else "",
            processes=self._list_processes(at, handle),
            address=address,
            health=whole.health if whole else self._read_health(address or at, handle),
        )

    def _find_address(self, handle: Any) -> str:
        """Where a card is on the PCI bus; empty where that is not known."""
        found = self._quietly(pynvml.nvmlDeviceGetPciInfo, handle)
        try:
            return health.normalize_address(_text(found.busId)) if found is not None else ""
        except (ValueError, AttributeError):
            return ""

    def _read_health(self, card: str, handle: Any) -> Health | None:
        now = time.monotonic()
        read_at, rare = self._rare.get(card, (-RARELY, {}))
        if now - read_at >= RARELY:
            rare = health.read_rare(pynvml, self._quietly, handle)
            self._rare[card] = now, rare
        if self._watch:
            self._watch.register(card, handle)
        seen = self._watch.seen.get(card, ()) if self._watch else ()
        return health.make_health(rare | health.read_rapid(pynvml, self._quietly, handle), seen)

    def _sample_instance(self, index: int, handle: Any, whole: Device) -> Device:
        """An instance of the card `whole`: what an instance does not report is the card's, where that says the same."""
        device = self._sample(index, handle, whole)
        device.parent, device.parent_uuid = whole.index, whole.uuid
        device.name = device.name or f"{whole.name} MIG"
        device.capability = device.capability or whole.capability
        device.temperature = whole.temperature if device.temperature is None else device.temperature
        return device

    def _list_processes(self, at: str, handle: Any) -> list[DeviceProcess] | None:
        """None where NVML does not list them: without rights on a divided card, for example."""
        found = self._ask(f"{at} processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if found is None:
            return None
        return [owners.describe(entry.pid, entry.usedGpuMemory) for entry in found]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def read_driver() -> str:
    """The version of the NVIDIA driver; empty where NVML does not say it."""
    try:
        pynvml.nvmlInit()
        return _text(pynvml.nvmlSystemGetDriverVersion())
    except _FAILURES:
        return ""
