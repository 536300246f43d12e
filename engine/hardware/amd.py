"""AMD devices through AMD's library `amdsmi`, where it is installed. Each query is guarded by itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from engine.hardware import owners
from engine.protocol.messages import Device, DeviceProcess

MEGABYTE = 1 << 20


class Amd:
    """`note` says which queries are refused."""

    def __init__(self) -> None:
        self.note = ""
        self._library: Any = None
        try:
            library = importlib.import_module("amdsmi")
            library.amdsmi_init()
            self._library = library
        except ImportError:
            pass
        except Exception as error:  # noqa: BLE001 - the library fails in its own ways without its driver
            self.note = f"amdsmi: {error}"

    def sample_devices(self) -> list[Device]:
        if self._library is None:
            return []
        self.note = ""
        handles = self._ask("devices", "amdsmi_get_processor_handles") or []
        return [self._sample(index, handle) for index, handle in enumerate(handles)]

    def _ask(self, name: str, function: str, *arguments: Any) -> Any:
        """The answer, or None."""
        try:
            return getattr(self._library, function)(*arguments)
        except Exception as error:  # noqa: BLE001 - its errors have one base class in each version
            self.note = f"{name}: {error}"
            return None

    def _sample(self, index: int, handle: Any) -> Device:
        at = f"device {index}"
        chip = _mapping(self._ask(f"{at} name", "amdsmi_get_gpu_asic_info", handle))
        memory = _mapping(self._ask(f"{at} memory", "amdsmi_get_gpu_vram_usage", handle))
        activity = _mapping(self._ask(f"{at} utilisation", "amdsmi_get_gpu_activity", handle))
        power = _mapping(self._ask(f"{at} power", "amdsmi_get_power_info", handle))
        used, total = _number(memory.get("vram_used")), _number(memory.get("vram_total"))
        serial = str(chip.get("asic_serial") or "").lower().removeprefix("0x")
        limit = _number(power.get("power_limit"))
        return Device(
            index=index,
            ordinal=index,
            kind="amd",
            name=str(chip.get("market_name") or ""),
            uuid=f"GPU-{serial}" if serial and serial != "n/a" else "",
            memory_used=int(used * MEGABYTE) if used is not None else None,
            memory_total=int(total * MEGABYTE) if total is not None else None,
            utilisation=_number(activity.get("gfx_activity")),
            temperature=self._read_temperature(at, handle),
            power=next((watts for watts in map(_number, _list_powers(power)) if watts is not None), None),
            power_limit=limit if limit is None or limit < 10_000 else limit / 1e6,
            processes=self._list_processes(at, handle),
        )

    def _read_temperature(self, at: str, handle: Any) -> float | None:
        """The hottest place's temperature, or the edge's."""
        for sensor in ("HOTSPOT", "EDGE"):
            try:
                kind = getattr(self._library.AmdSmiTemperatureType, sensor)
                metric = self._library.AmdSmiTemperatureMetric.CURRENT
            except AttributeError:
                return None
            degrees = _number(self._ask(f"{at} temperature", "amdsmi_get_temp_metric", handle, kind, metric))
            if degrees is not None:
                return degrees
        return None

    def _list_processes(self, at: str, handle: Any) -> list[DeviceProcess] | None:
        found = self._ask(f"{at} processes", "amdsmi_get_gpu_process_list", handle)
        if not isinstance(found, list):
            return None
        entries = [_mapping(entry) for entry in found]
        return [owners.describe(int(entry["pid"]), _read_memory(entry)) for entry in entries if "pid" in entry]


def _list_powers(power: Mapping[str, Any]) -> list[Any]:
    return [power.get("current_socket_power"), power.get("average_socket_power"), power.get("socket_power")]


def _read_memory(entry: Mapping[str, Any]) -> int | None:
    memory = _number(_mapping(entry.get("memory_usage")).get("vram_mem"))
    memory = _number(entry.get("mem")) if memory is None else memory
    return int(memory) if memory is not None else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A figure; None for the library's `N/A`."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
