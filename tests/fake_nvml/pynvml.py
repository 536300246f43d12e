"""A stand-in for `nvidia-ml-py` on a machine without a card: the same names and errors, with devices from a JSON file.

The file is named by `FAKE_NVML` and read at each call, so a test changes what an engine sees while it runs. A folder of
this file is put before the others on the path of a process, or the module is loaded by `load`.

`{"init": CODE, "cards": [{"name", "uuid", "total", "used", "processes": [{"pid", "memory"}], "temperature",
"capability", "instances": [CARD, …], "refuse": {"nvmlDeviceGetMemoryInfo": CODE}}, CODE, …]}`: a card that is a number
refuses its handle with that error. A card has further figures of its health where it has their keys.
"""

from __future__ import annotations

import importlib.util
import json
import os
import site
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def _find_real() -> Path:
    for folder in (sysconfig.get_path("purelib"), *site.getsitepackages()):
        if (path := Path(folder) / "pynvml.py").is_file():
            return path
    raise ImportError("nvidia-ml-py is not installed")


_spec = importlib.util.spec_from_file_location("real_pynvml", _find_real())
assert _spec and _spec.loader
_real = importlib.util.module_from_spec(_spec)
sys.modules["real_pynvml"] = _real  # it looks itself up
_spec.loader.exec_module(_real)
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("__")})
NVMLError: Any = _real.NVMLError


def read() -> dict[str, Any]:
    path = Path(os.environ.get("FAKE_NVML", "/nonexistent"))
    return json.loads(path.read_text()) if path.is_file() else {"init": _real.NVML_ERROR_LIBRARY_NOT_FOUND, "cards": []}


def _answer(function: str, handle: Any, key: str, default: Any = None) -> Any:
    if code := handle.get("refuse", {}).get(function) or handle.get("refuse", {}).get("*"):
        raise NVMLError(code)
    if key not in handle and default is None:
        raise NVMLError(_real.NVML_ERROR_NOT_SUPPORTED)
    return handle.get(key, default)


def nvmlInit() -> None:
    if code := read().get("init"):
        raise NVMLError(code)


def nvmlShutdown() -> None:
    pass


def nvmlSystemGetDriverVersion() -> str:
    return str(read().get("driver", "580.65.06"))


def nvmlDeviceGetCount() -> int:
    nvmlInit()
    return len(read()["cards"])


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    card = read()["cards"][index]
    if isinstance(card, int):
        raise NVMLError(card)
    return card


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    for card in read()["cards"]:
        for each in () if isinstance(card, int) else (card, *card.get("instances", ())):
            if each["uuid"] == uuid:
                return each
    raise NVMLError(_real.NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetName(handle: Any) -> str:
    return str(_answer("nvmlDeviceGetName", handle, "name"))


def nvmlDeviceGetUUID(handle: Any) -> str:
    return str(_answer("nvmlDeviceGetUUID", handle, "uuid"))


def nvmlDeviceGetMemoryInfo(handle: Any) -> Any:
    total, used = _answer("nvmlDeviceGetMemoryInfo", handle, "total"), handle.get("used", 0)
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetUtilizationRates(handle: Any) -> Any:
    return SimpleNamespace(gpu=_answer("nvmlDeviceGetUtilizationRates", handle, "utilisation", 0), memory=0)


def nvmlDeviceGetPowerUsage(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetPowerUsage", handle, "power", 50_000))


def nvmlDeviceGetEnforcedPowerLimit(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetEnforcedPowerLimit", handle, "limit", 300_000))


def nvmlDeviceGetTemperature(handle: Any, sensor: int) -> int:
    return int(_answer("nvmlDeviceGetTemperature", handle, "temperature", 40))


def nvmlDeviceGetCudaComputeCapability(handle: Any) -> list[int]:
    return list(_answer("nvmlDeviceGetCudaComputeCapability", handle, "capability", [8, 0]))


def nvmlDeviceGetComputeRunningProcesses(handle: Any) -> list[Any]:
    found = _answer("nvmlDeviceGetComputeRunningProcesses", handle, "processes", [])
    return [SimpleNamespace(pid=each["pid"], usedGpuMemory=each.get("memory")) for each in found]


def nvmlDeviceGetMigMode(handle: Any) -> list[int]:
    return [1, 1] if _answer("nvmlDeviceGetMigMode", handle, "instances") is not None else [0, 0]


def nvmlDeviceGetMaxMigDeviceCount(handle: Any) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Any, index: int) -> Any:
    instances = handle["instances"]
    if index >= len(instances):
        raise NVMLError(_real.NVML_ERROR_NOT_FOUND)
    return instances[index]


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: Any) -> Any:
    for card in read()["cards"]:
        if not isinstance(card, int) and handle in card.get("instances", ()):
            return card
    raise NVMLError(_real.NVML_ERROR_INVALID_ARGUMENT)


# ── health: a card without these keys does not have the figures ──


def nvmlDeviceGetPciInfo(handle: Any) -> Any:
    return SimpleNamespace(busId=_answer("nvmlDeviceGetPciInfo", handle, "address"))


def nvmlDeviceGetClockInfo(handle: Any, kind: int) -> int:
    return int(_answer("nvmlDeviceGetClockInfo", handle, "clock"))


def nvmlDeviceGetMaxClockInfo(handle: Any, kind: int) -> int:
    return int(_answer("nvmlDeviceGetMaxClockInfo", handle, "clock_max"))


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetCurrentClocksThrottleReasons", handle, "reasons"))


def nvmlDeviceGetTotalEccErrors(handle: Any, kind: int, counter: int) -> int:
    return int(_answer("nvmlDeviceGetTotalEccErrors", handle, "ecc")[kind])


def nvmlDeviceGetRetiredPages(handle: Any, cause: int) -> list[int]:
    return [0] * int(_answer("nvmlDeviceGetRetiredPages", handle, "retired")[cause])


def nvmlDeviceGetRetiredPagesPendingStatus(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetRetiredPagesPendingStatus", handle, "pending"))


def nvmlDeviceGetRemappedRows(handle: Any) -> list[int]:
    return list(_answer("nvmlDeviceGetRemappedRows", handle, "rows"))


def nvmlDeviceGetCurrPcieLinkWidth(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetCurrPcieLinkWidth", handle, "link")[0])


def nvmlDeviceGetMaxPcieLinkWidth(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetMaxPcieLinkWidth", handle, "link")[1])


def nvmlDeviceGetCurrPcieLinkGeneration(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetCurrPcieLinkGeneration", handle, "link")[2])


def nvmlDeviceGetMaxPcieLinkGeneration(handle: Any) -> int:
    return int(_answer("nvmlDeviceGetMaxPcieLinkGeneration", handle, "link")[3])


def nvmlEventSetCreate() -> dict[str, Any]:
    return {"cards": [], "read": 0}


def nvmlDeviceRegisterEvents(handle: Any, kinds: int, events: Any) -> None:
    _answer("nvmlDeviceRegisterEvents", handle, "address")
    events["cards"].append(handle["address"])


def nvmlEventSetWait_v2(events: Any, milliseconds: int) -> Any:
    """`xids` are pairs of the number of a card and of an error; each is told once."""
    told = read().get("xids", [])[events["read"] :]
    if not told or milliseconds:
        raise NVMLError(_real.NVML_ERROR_TIMEOUT)
    events["read"] += 1
    card = read()["cards"][told[0][0]]
    kind = _real.nvmlEventTypeXidCriticalError
    return SimpleNamespace(eventType=kind, device=card, eventData=told[0][1])
