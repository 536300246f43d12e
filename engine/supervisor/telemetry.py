"""Samples host and device figures once a second, in a thread of its own: a call of NVML may block, and the server must
not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from engine.hardware import masks
from engine.hardware.listing import Listing
from engine.protocol.home import host_name
from engine.protocol.messages import Device, Host, Telemetry

PERIOD = 1.0


class Sampler:
    """Calls `deliver` with a `Telemetry` each second, from its own thread. `disk` is a path on the file system that is
    measured."""

    def __init__(self, disk: Path, deliver: Callable[[Telemetry], None]) -> None:
        self._disk, self._deliver = disk, deliver
        self._stop = threading.Event()
        self._listing = Listing(watch=True)
        self.devices: list[Device] = self._listing.sample_devices()
        """Those of the latest sample; never changed, only replaced."""
        self._before: tuple[float, int, int, int, int] | None = None
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        psutil.cpu_percent()
        psutil.cpu_percent(percpu=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            self._deliver(self.sample())

    def sample(self) -> Telemetry:
        self.devices = devices = self._listing.sample_devices()
        return Telemetry(
            time=time.time(),
            host=self._sample_host(),
            devices=devices,
            backend=devices[0].kind if devices else "cpu",
            visible=" ".join(f"{name}={os.environ[name]}" for name in masks.VARIABLES if name in os.environ),
            note=self._listing.note,
        )

    def _sample_host(self) -> Host:
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._disk))
        read, write, received, sent = self._compute_rates()
        return Host(
            name=host_name(),
            cpu_percent=psutil.cpu_percent(),
            cpu_count=psutil.cpu_count() or 1,
            per_cpu=psutil.cpu_percent(percpu=True),
            load=list(os.getloadavg()),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            disk_free=disk.free,
            disk_total=disk.total,
            disk_read=read,
            disk_write=write,
            network_in=received,
            network_out=sent,
            temperature=_read_hottest_sensor(),
        )

    def _compute_rates(self) -> tuple[float, float, float, float]:
        """Bytes a second since the sample before: disk read, disk written, network in, network out."""
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        counters = (
            disk.read_bytes if disk else 0,
            disk.write_bytes if disk else 0,
            network.bytes_recv if network else 0,
            network.bytes_sent if network else 0,
        )
        now = time.monotonic()
        before, self._before = self._before, (now, *counters)
        if before is None:
            return 0.0, 0.0, 0.0, 0.0
        seconds = max(now - before[0], 1e-3)
        first, second, third, fourth = (
            max(0.0, (new - old) / seconds) for new, old in zip(counters, before[1:], strict=True)
        )
        return first, second, third, fourth


def _read_hottest_sensor() -> float | None:
    """The highest temperature of the host's sensors in °C, or None: containers and many servers have no sensors."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    readings = [reading.current for group in sensors.values() for reading in group if reading.current]
    return max(readings, default=None)
