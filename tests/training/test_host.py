"""A host that others need, or a device that is too hot, pauses a run until it is over."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from engine.options.training import LimitOptions
from engine.protocol.journal import Ledger, Warn
from engine.training import host
from tests import fake_nvml
from tests.fake_nvml import make_card
from tests.training.here import Here


@pytest.fixture(autouse=True)
def check_always(monkeypatch):
    monkeypatch.setattr(host, "CHECK_SECONDS", 0.0)


def _pauses(run: Here) -> list[tuple[str, str]]:
    return [(entry.name, entry.new or entry.old) for entry in run.entries(Ledger)]


def test_a_hot_device_pauses_until_it_is_cooler(tmp_path, prepared, monkeypatch):
    readings = itertools.chain([60.0, 91.0, 90.0, 86.0], itertools.repeat(70.0))
    monkeypatch.setattr(host, "read_temperatures", lambda: [50.0, next(readings)])
    run = Here(tmp_path, "hot", prepared, "limits.temperature=85", "training.max_steps=4")
    assert run.train() == ("completed", 4)
    reason = "device too hot: 91 °C, limits.temperature is 85"
    assert _pauses(run) == [("pause", reason), ("continue", reason)]
    assert [entry.code for entry in run.entries(Ledger)] == ["pause.device_hot", "mark.continue"]
    assert next(readings) == 70.0  # it was looked at until it had cooled down


def test_a_device_without_a_sensor_is_warned_of_once(tmp_path, prepared, monkeypatch):
    cards = fake_nvml.install(tmp_path, monkeypatch)
    cards.write(make_card(0, refuse={"nvmlDeviceGetTemperature": 3}), 999)
    run = Here(tmp_path, "cool", prepared, "limits.temperature=85", "training.max_steps=4")
    assert run.train() == ("completed", 4)
    (warned,) = [entry for entry in run.entries(Warn) if entry.code == "device.no_sensor"]
    assert "limits.temperature" in warned.message and warned.hint
    cards.write(make_card(0, refuse={"nvmlDeviceGetTemperature": 3}), make_card(1, temperature=91))
    assert host.read_temperatures() == [91.0]


def test_a_full_host_pauses_until_memory_is_free(tmp_path, prepared, monkeypatch):
    real = host.psutil.virtual_memory
    used = itertools.chain([40.0, 95.0, 90.0], itertools.repeat(50.0))
    monkeypatch.setattr(
        host, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(percent=next(used), available=real()))
    )
    run = Here(tmp_path, "full", prepared, "limits.memory_percent=80", "training.max_steps=4")
    assert run.train() == ("completed", 4)
    assert [name for name, _ in _pauses(run)] == ["pause", "continue"]
    assert _pauses(run)[0][1] == "host memory: 95 % in use, limits.memory_percent is 80"


def test_other_programs_count_and_the_run_itself_does_not(tmp_path, monkeypatch):
    clock = itertools.count(0, 10)
    everything, ours = iter([0.0, 20.0, 40.0]), iter([0.0, 19.0, 24.0])
    monkeypatch.setattr(host, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(host, "_read_host_cpu_seconds", lambda: next(everything))
    monkeypatch.setattr(host, "_read_process_cpu_seconds", lambda pid: next(ours))
    monkeypatch.setattr(host.os, "cpu_count", lambda: 2)
    monitor = host.HostMonitor(tmp_path, [1])
    limits = LimitOptions(cpu_percent=70, disk_free_gb=0)
    assert monitor.find_exceeded_limit(limits) is None  # nothing to compare with yet
    assert (
        monitor.find_exceeded_limit(limits) is None
    )  # 20 CPU seconds in 10 s on two cores: all busy, but 19 of them are ours
    pause = monitor.find_exceeded_limit(limits.model_copy(update={"cpu_percent": 70.0}))
    assert pause is not None and pause.code == "pause.host_cpu" and "other programs use 75 %" in pause.reason


def test_what_is_not_limited_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "read_temperatures", pytest.fail)
    monkeypatch.setattr(host, "_read_host_cpu_seconds", pytest.fail)
    assert host.HostMonitor(tmp_path, []).find_exceeded_limit(LimitOptions(disk_free_gb=0)) is None
    pause = host.HostMonitor(tmp_path, []).find_exceeded_limit(LimitOptions(disk_free_gb=1e9))
    assert pause is not None and pause.code == "pause.disk_low" and pause.passes
