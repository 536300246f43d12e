"""What a run takes, side by side: as it was forecast, as the rehearsal took it, and in the end."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from engine.config import forecasts
from engine.hardware.listing import list_visible
from engine.models import accelerator
from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.journal import Memory, Metrics

if TYPE_CHECKING:
    from engine.training.job import Job

FORECAST, REHEARSED, ACTUAL = "forecast", "rehearsed", "actual"
_SHOWN = ("device_bytes", "host_bytes", "disk_bytes", "seconds", "error_percent", "strategy", "verdict")


def record_forecast(job: Job) -> None:
    """Take the kept forecast of this run into the job, and journal it. On rank 0."""
    found = None
    if job.ranks.first and not job.simulated:
        cards = list_visible() if job.device.kind != "cpu" else []
        key = forecasts.compute_key(job.submitted, forecasts.find_place(cards), job.ranks.world)
        found = forecasts.read(_home(job), key)
        if found is not None and forecasts.is_current(found) is False:
            found = None
    if found is not None:
        job.memory[FORECAST] = found
        shown: dict[str, Any] = {name: found[name] for name in _SHOWN if name in found}
        job.reporter.write(Memory(attempt=job.attempt, source=FORECAST, **shown))


def record_peak(job: Job, source: str) -> None:
    """Journal the peaks until now: of the fullest device, and of the memory of all ranks. Called on every rank."""
    peaks = job.ranks.gather((accelerator.read_peak(), read_resident_peak()))
    devices = [device for device, _ in peaks if device is not None]
    hosts = [host for _, host in peaks if host is not None]
    found: dict[str, Any] = {"device_bytes": max(devices, default=None), "host_bytes": sum(hosts) if hosts else None}
    job.memory[source] = found
    job.reporter.write(Memory(attempt=job.attempt, source=source, **found))


def describe(job: Job) -> dict[str, Any]:
    """The part of report.json: what was forecast, rehearsed and taken."""
    forecast = job.memory.get(FORECAST)
    shown = None if forecast is None else {name: forecast.get(name) for name in (*_SHOWN, "allocated_bytes")}
    return {FORECAST: shown, **{name: job.memory.get(name) for name in (REHEARSED, ACTUAL)}}


def learn(job: Job) -> None:
    """Remember, for later forecasts on such a device, how this one compares with what the run took. On rank 0."""
    from engine.training.forecast import calibration

    forecast, actual = job.memory.get(FORECAST), job.memory.get(ACTUAL)
    if forecast is None or actual is None or not forecast.get("rows_measured") or _is_changed(job):
        return
    taken = actual["device_bytes"] if actual["device_bytes"] is not None else actual["host_bytes"]
    speed, work = _read_speed(job), forecast.get("flops_per_token")
    calibration.add(
        _home(job),
        forecast["device"],
        run=job.run.id,
        forecast=forecast["uncalibrated_bytes"],
        actual=taken,
        flops=speed * work / job.ranks.world if speed and work else None,
    )


def _is_changed(job: Job) -> bool:
    """Whether the run went on with other settings than it was forecast with, or this attempt only ended it."""
    now, before = (profile.training.model_dump() for profile in (job.profile, job.submitted))
    return now != before or job.resumed_from is not None


def read_resident_peak() -> int | None:
    """The largest resident memory of this process so far, in bytes; None where the system does not tell."""
    return _read_status("VmHWM:")


def read_resident() -> int | None:
    """The resident memory of this process, in bytes; None where the system does not tell."""
    return _read_status("VmRSS:")


def _read_status(name: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(name)), None)
    except OSError:
        return None


def _read_speed(job: Job) -> float | None:
    """Tokens a second of all ranks: the median over the steps of this attempt."""
    speeds = [
        entry.values.get("train/tokens_per_second")
        for entry, _ in journal.read(job.run.events)
        if isinstance(entry, Metrics) and entry.attempt == job.attempt
    ]
    known = [speed for speed in speeds if speed]
    return statistics.median(known) if known else None


def _home(job: Job) -> Home:
    return Home(job.run.path.parent.parent)
