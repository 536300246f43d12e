"""What NVML and the kernel's log say of a card's health: clocks, what slows it down, errors of its memory, its link,
and Xid errors. A figure that a card or a driver does not have is None.

`nvml` is the module `pynvml`; `ask` answers None where a query is refused (`Nvidia._quietly`).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from engine.protocol.messages import Health

Ask = Callable[..., Any]

REASONS = (
    ("nvmlClocksThrottleReasonSwPowerCap", "power_cap"),
    ("nvmlClocksThrottleReasonSwThermalSlowdown", "heat"),
    ("nvmlClocksThrottleReasonHwThermalSlowdown", "heat"),
    ("nvmlClocksThrottleReasonHwPowerBrakeSlowdown", "power_brake"),
    ("nvmlClocksThrottleReasonHwSlowdown", "slowdown"),
)
"""The bits of NVML's reasons that slow a card down under load, and their names in `Health.throttled`."""
LOG_COMMANDS = (
    ("dmesg", "--level=emerg,alert,crit,err,warn,notice"),
    ("journalctl", "--dmesg", "--boot", "--no-pager"),
)
LOG_SECONDS = 10.0
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")
NO_XIDS = 64
"""Xid errors of a card that are kept at most: the last ones."""


def read_rapid(nvml: Any, ask: Ask, handle: Any) -> dict[str, Any]:
    """The figures that change from second to second. The link's speed is one of them: an idle card lowers it."""
    query = getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None)
    bits = ask(query, handle) if query else None
    reasons = [name for constant, name in REASONS if int(bits or 0) & int(getattr(nvml, constant, 0))]
    return {
        "clock": _number(ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)),
        "throttled": list(dict.fromkeys(reasons)) if bits is not None else None,
        "link_generation": ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
    }


def read_rare(nvml: Any, ask: Ask, handle: Any) -> dict[str, Any]:
    """The figures that hardly ever change, some of which take a while to read."""
    corrected, uncorrected = (
        ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, nvml.NVML_VOLATILE_ECC)
        for kind in (nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    )
    pages = [
        ask(nvml.nvmlDeviceGetRetiredPages, handle, cause)
        for cause in (
            nvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            nvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        )
    ]
    rows = ask(nvml.nvmlDeviceGetRemappedRows, handle)
    waits = ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    known = [len(found) for found in pages if found is not None]
    pending = [bool(each) for each in (waits, rows[2] if rows else None) if each is not None]
    return {
        "clock_max": _number(ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)),
        "ecc_corrected": corrected,
        "ecc_uncorrected": uncorrected,
        "retired_pages": sum(known) if known else None,
        "remapped_rows": int(rows[0]) + int(rows[1]) if rows else None,
        "reset_pending": any(pending) if pending else None,
        "remap_failed": bool(rows[3]) if rows else None,
        "link_width": ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "link_width_max": ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        "link_generation_max": ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
    }


def make_health(figures: dict[str, Any], xids: Iterable[int]) -> Health | None:
    """None where nothing is known."""
    known = {name: value for name, value in figures.items() if value is not None}
    seen = list(xids)[-NO_XIDS:]
    return Health(**known, xids=seen) if known or seen else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


class XidWatch:
    """Collects the Xid errors that NVML tells while this process runs, by the address of the card."""

    def __init__(self, nvml: Any, ask: Ask) -> None:
        self._nvml, self._ask = nvml, ask
        self._set: Any = None
        self._registered: set[str] = set()
        self.seen: dict[str, deque[int]] = {}

    def register(self, address: str, handle: Any) -> None:
        """Watch a card; nothing happens for one that has no events."""
        if address in self._registered:
            return
        self._registered.add(address)
        if self._set is None:
            self._set = self._ask(self._nvml.nvmlEventSetCreate)
        if self._set is not None:
            self._ask(self._nvml.nvmlDeviceRegisterEvents, handle, self._nvml.nvmlEventTypeXidCriticalError, self._set)

    def poll(self, find_address: Callable[[Any], str]) -> None:
        """Take the events that are waiting. Never waits for one."""
        if self._set is None:
            return
        for _ in range(NO_XIDS):
            event = self._ask(self._nvml.nvmlEventSetWait_v2, self._set, 0)
            if event is None:
                return
            if event.eventType & self._nvml.nvmlEventTypeXidCriticalError:
                seen = self.seen.setdefault(find_address(event.device), deque(maxlen=NO_XIDS))
                seen.append(int(event.eventData))


class LoggedXid(NamedTuple):
    address: str
    code: int


def normalize_address(address: str) -> str:
    """A PCI address as the kernel writes it, without the function and with four digits of domain: `0000:3b:00`."""
    parts = address.lower().partition(".")[0].split(":")
    parts = ["0", *parts] if len(parts) == 2 else parts
    return ":".join([f"{int(parts[0], 16):04x}", *parts[1:]])


def parse_log(text: str) -> list[LoggedXid]:
    return [LoggedXid(normalize_address(found[1]), int(found[2])) for found in _XID.finditer(text)]


def read_log() -> list[LoggedXid] | None:
    """The Xid errors in the kernel's log since the host was started; None where this user cannot read it."""
    for command in LOG_COMMANDS:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LOG_SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        lines = [line for line in done.stdout.splitlines() if line and not line.startswith("--")]
        if done.returncode == 0 and lines:  # journalctl says "-- No entries --" to those who may not read the kernel's
            return parse_log(done.stdout)
    return None
