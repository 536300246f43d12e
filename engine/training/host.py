"""Monitoring of the host's limits: a full disk, a busy host or a hot device pauses the run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from engine.hardware.listing import list_visible
from engine.options.training import LimitOptions
from engine.protocol.codes import Pause

CHECK_SECONDS = 5.0
"""Seconds between two checks."""


class HostMonitor:
    """Checks the host on rank 0. `path` is on the disk that the run writes to; `pids` are the job's own processes,
    whose CPU time does not count. `warn` is told, once, of a limit that cannot be watched."""

    def __init__(self, path: Path, pids: Sequence[int], warn: Callable[..., None] = lambda **_: None) -> None:
        self._path, self._pids, self._warn = path, pids, warn
        self._warned = False
        self._checked_at = 0.0
        self._last_cpu_times: tuple[float, float, float] | None = None
        """At the last check: the time in seconds, and the CPU seconds of all programs and of this job."""

    def is_due(self) -> bool:
        """Whether the next check is due; if so, the interval starts again."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_SECONDS:
            return False
        self._checked_at = now
        return True

    def find_exceeded_limit(self, limits: LimitOptions) -> Pause | None:
        """A pause for the first limit that is exceeded; None when none is."""
        free = shutil.disk_usage(self._path).free / 1e9
        if free < limits.disk_free_gb:
            reason = f"disk low: {free:.1f} GB free, limits.disk_free_gb is {limits.disk_free_gb:g}"
            return Pause(code="pause.disk_low", reason=reason)
        used = psutil.virtual_memory().percent
        if limits.memory_percent is not None and used > limits.memory_percent:
            reason = f"host memory: {used:.0f} % in use, limits.memory_percent is {limits.memory_percent:g}"
            return Pause(code="pause.host_memory", reason=reason)
        if limits.cpu_percent is not None and (others := self._measure_other_programs()) > limits.cpu_percent:
            reason = f"host CPU: other programs use {others:.0f} %, limits.cpu_percent is {limits.cpu_percent:g}"
            return Pause(code="pause.host_cpu", reason=reason)
        if limits.temperature is not None and (hottest := self._read_hottest()) > limits.temperature:
            reason = f"device too hot: {hottest:.0f} °C, limits.temperature is {limits.temperature:g}"
            return Pause(code="pause.device_hot", reason=reason)
        return None

    def _read_hottest(self) -> float:
        """The temperature of the hottest device, in °C; 0, with a warning, where none has a sensor that answers."""
        readings = read_temperatures()
        if not readings and not self._warned:
            self._warned = True
            self._warn(
                code="device.no_sensor",
                message="no device of this run reports its temperature: limits.temperature limits nothing",
                hint="take limits.temperature out, or watch the temperature otherwise",
            )
        return max(readings, default=0.0)

    def _measure_other_programs(self) -> float:
        """The percentage of the host's CPU time used by other programs since the last check; 0 at the first."""
        before, self._last_cpu_times = (
            self._last_cpu_times,
            (time.monotonic(), _read_host_cpu_seconds(), sum(map(_read_process_cpu_seconds, self._pids))),
        )
        if before is None:
            return 0.0
        seconds, all_of_it, ours = (now - then for now, then in zip(self._last_cpu_times, before, strict=True))
        return 100 * max(0.0, all_of_it - ours) / (seconds * (os.cpu_count() or 1))


def _read_host_cpu_seconds() -> float:
    """CPU seconds that the host has spent on all programs."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _read_process_cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def read_temperatures() -> list[float]:
    """Temperatures of the devices that this job sees, in °C; without those of devices that do not report it."""
    return [device.temperature for device in list_visible() if device.temperature is not None]
