"""What drivers refuse costs no other figure, whichever query it is; and nobody is named who may be somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from engine.hardware import owners, sysfs, wheels
from engine.hardware.amd import Amd
from engine.hardware.listing import Listing
from engine.hardware.nvidia import RETRY, Nvidia
from engine.protocol.messages import Device
from engine.workers import device_checks
from tests import fake_nvml
from tests.fake_nvml import GB, Cards, make_card

QUERIES = {
    "nvmlDeviceGetMemoryInfo": {"memory_used", "memory_total"},
    "nvmlDeviceGetUtilizationRates": {"utilisation"},
    "nvmlDeviceGetPowerUsage": {"power"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit"},
    "nvmlDeviceGetTemperature": {"temperature"},
    "nvmlDeviceGetComputeRunningProcesses": {"processes"},
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetUUID": {"uuid"},
    "nvmlDeviceGetCudaComputeCapability": {"capability"},
    "nvmlDeviceGetMigMode": set(),
}
ERRORS = {
    3: "NotSupported",
    4: "NoPermission",
    13: "FunctionNotFound",
    15: "GpuIsLost",
    16: "ResetRequired",
    999: "Unknown",
}


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    return fake_nvml.install(tmp_path, monkeypatch)


def fields(device: Device) -> dict[str, Any]:
    return {name: getattr(device, name) for name in device.__struct_fields__}


@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("query", QUERIES)
def test_one_refused_query_costs_its_own_figures_alone(cards: Cards, query: str, code: int) -> None:
    cards.write(make_card(0), make_card(1))
    whole = Nvidia().sample_devices()
    cards.write(make_card(0, refuse={query: code}), make_card(1))
    source = Nvidia()
    refused, other = source.sample_devices()
    assert fields(other) == fields(whole[1])
    changed = {name for name, value in fields(refused).items() if value != fields(whole[0])[name]}
    assert changed == QUERIES[query] and all(not getattr(refused, name) for name in changed)
    assert ("device 0" in source.note) == (code != 3 and query != "nvmlDeviceGetMigMode")


def test_a_card_whose_every_query_is_refused_is_still_a_card(cards: Cards) -> None:
    cards.write(make_card(0, refuse={"*": 4}), 15, make_card(2))
    first, lost, last = Nvidia().sample_devices()
    assert (first.index, first.ordinal, first.processes) == (0, 0, None)
    assert (lost.index, lost.ordinal, lost.processes) == (1, None, None)
    assert (last.index, last.ordinal) == (2, 1), "CUDA counts the cards that it can reach"


def test_cards_are_counted_anew_and_a_driver_may_come_later(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    cards.write(init=9)
    source = Nvidia()
    assert source.sample_devices() == [] and "no NVIDIA driver" in source.note
    cards.write(make_card(0))
    assert source.sample_devices() == [], "it is not asked at each sample"
    source._tried_at -= RETRY
    assert len(source.sample_devices()) == 1 and source.note == ""
    cards.write(make_card(0), make_card(1))
    assert len(source.sample_devices()) == 2
    cards.write(make_card(1))
    assert [device.name for device in source.sample_devices()] == ["NVIDIA T1"]


def test_instances_of_a_divided_card_are_devices(cards: Cards) -> None:
    refuse = {"nvmlDeviceGetUtilizationRates": 3, "nvmlDeviceGetTemperature": 3}
    refuse |= {"nvmlDeviceGetComputeRunningProcesses": 4, "nvmlDeviceGetCudaComputeCapability": 3}
    parts = [{"name": "A100 MIG 3g.20gb", "uuid": f"MIG-{at}", "total": 20 * GB, "refuse": refuse} for at in range(2)]
    cards.write(make_card(0, instances=parts, temperature=61), make_card(1))
    whole, *instances = Nvidia().sample_devices()
    assert (whole.index, whole.ordinal) == (1, 1)
    assert [each.index for each in instances] == [2, 3]
    assert [(each.uuid, each.parent, each.temperature, each.capability) for each in instances] == [
        ("MIG-0", 0, 61.0, "8.0"),
        ("MIG-1", 0, 61.0, "8.0"),
    ]
    assert all(each.processes is None and each.utilisation is None for each in instances)


# ── owners ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_owner_of_a_local_process_is_named_with_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "is_first_namespace", lambda: True)
    worker = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "--home", "/h", "--job", "chat-1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert worker.stdout is not None and worker.stdout.readline()  # it has its command line by now
        found = owners.describe(worker.pid, GB)
        assert (found.user, found.job) == (psutil.Process().username(), "chat-1")
        assert found.since == psutil.Process(worker.pid).create_time()
    finally:
        worker.communicate(b"\n")
    gone = owners.describe(worker.pid, None)
    assert (gone.user, gone.name, gone.since, gone.job, gone.memory) == ("", "", 0.0, "", None)


def test_in_a_container_nobody_is_named_who_holds_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's pid 1 is the host's, and ours is another process."""
    monkeypatch.setattr(owners, "is_first_namespace", lambda: False)
    for pid in (1, os.getpid(), os.getppid()):
        found = owners.describe(pid, GB)
        assert (found.user, found.name, found.since) == ("", "", 0.0)
    monkeypatch.setattr(owners, "_NODES", ("/dev/null",))
    with Path("/dev/null").open():
        assert owners.describe(os.getpid(), GB).name == psutil.Process().name(), "it has the device open"


# ── AMD, Intel ──────────────────────────────────────────────────────────────────────────────────────────────────────


def make_amdsmi(**broken: Any) -> Any:
    module: Any = ModuleType("amdsmi")
    answers = {
        "amdsmi_get_processor_handles": ["a", "b"],
        "amdsmi_get_gpu_asic_info": {"market_name": "MI300X", "asic_serial": "0xABCD"},
        "amdsmi_get_gpu_vram_usage": {"vram_total": 1024, "vram_used": 256},
        "amdsmi_get_gpu_activity": {"gfx_activity": 40, "umc_activity": "N/A"},
        "amdsmi_get_power_info": {"current_socket_power": "N/A", "average_socket_power": 150, "power_limit": 750},
        "amdsmi_get_temp_metric": 55,
        "amdsmi_get_gpu_process_list": [{"pid": os.getpid(), "mem": 7}],
    }

    def make(name: str) -> Any:
        def answer(*_: Any) -> Any:
            if name in broken:
                if isinstance(broken[name], Exception):
                    raise broken[name]
                return broken[name]
            return answers[name]

        return answer

    for name in answers:
        setattr(module, name, make(name))
    module.amdsmi_init = lambda: None
    module.AmdSmiTemperatureType = SimpleNamespace(EDGE=0, HOTSPOT=1)
    module.AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
    return module


AMD = {
    "amdsmi_get_gpu_asic_info": {"name", "uuid"},
    "amdsmi_get_gpu_vram_usage": {"memory_used", "memory_total"},
    "amdsmi_get_gpu_activity": {"utilisation"},
    "amdsmi_get_power_info": {"power", "power_limit"},
    "amdsmi_get_temp_metric": {"temperature"},
    "amdsmi_get_gpu_process_list": {"processes"},
}


@pytest.mark.parametrize("broken", [RuntimeError("refused"), "N/A", {}, None])
@pytest.mark.parametrize("query", AMD)
def test_amd_cards_are_listed_as_far_as_their_library_answers(
    monkeypatch: pytest.MonkeyPatch, query: str, broken: Any
) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", make_amdsmi())
    whole, _ = Amd().sample_devices()
    assert (whole.kind, whole.name, whole.uuid, whole.memory_used) == ("amd", "MI300X", "GPU-abcd", 256 << 20)
    assert (whole.power, whole.power_limit, whole.temperature) == (150.0, 750.0, 55.0)
    monkeypatch.setitem(sys.modules, "amdsmi", make_amdsmi(**{query: broken}))
    refused, _ = Amd().sample_devices()
    changed = {name for name, value in fields(refused).items() if value != fields(whole)[name]}
    assert changed == AMD[query]


def test_amd_and_intel_cards_are_found_in_sysfs(tmp_path: Path, cards: Cards) -> None:
    def write(card: str, **files: str) -> None:
        for name, text in files.items():
            path = tmp_path / "sys/class/drm" / card / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    assert Listing(tmp_path).sample_devices() == []
    write("card0", device__vendor="0x8086")  # the processor's own graphics
    write("card1", device__vendor="0x8086", lmem_total_bytes=str(16 * GB))
    assert [(each.kind, each.memory_total, each.memory_used) for each in sysfs.list_cards(tmp_path)] == [
        ("intel", 16 * GB, None)
    ]
    write("card2", device__vendor="0x1002", device__mem_info_vram_total=str(24 * GB), device__mem_info_vram_used="5")
    write("card2", device__hwmon__hwmon3__temp1_input="61000", device__gpu_busy_percent="x")
    (found,) = Listing(tmp_path).sample_devices()
    assert (found.kind, found.index, found.memory_used, found.temperature, found.utilisation) == (
        "amd",
        0,
        5,
        61.0,
        None,
    )


def test_cards_without_nvml_are_counted_by_their_files(tmp_path: Path, cards: Cards) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    devices = Listing(tmp_path).sample_devices()
    assert [(each.index, each.kind, each.memory_total, each.processes) for each in devices] == [
        (0, "nvidia", None, None),
        (1, "nvidia", None, None),
    ]


# ── doctor ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), CU130, False),
        ((7, 5), CU130, True),
        ((8, 9), CU130, True),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((12, 1), CU130, True),
        ((8, 0), ["sm_86"], False),
    ],
)
def test_kernels_are_compared_with_the_card(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    assert wheels.has_kernels(capability, architectures) is runs


def test_the_doctor_names_the_build_for_an_older_card(cards: Cards) -> None:
    cards.write(make_card(0, name="Tesla V100", capability=[7, 0]), make_card(1, name="A100", capability=[8, 0]))
    driver, old, new = device_checks.check_devices("13.0", CU130)
    assert driver.ok and new.ok
    assert old.ok is False and old.code == "device.no_kernels" and "cu126" in old.mend
    assert "compute capability 7.0" in old.detail


def test_the_doctor_shows_a_card_that_answers_little(cards: Cards) -> None:
    cards.write(make_card(0, refuse={"nvmlDeviceGetMemoryInfo": 3}), 15)
    checks = list(device_checks.check_devices("13.0", CU130))
    assert checks[0].name == "driver" and checks[0].ok, "there is a driver"
    lines = [check.detail for check in checks if check.name == "device"]
    assert any("memory –" in line for line in lines) and any("cannot be reached" in line for line in lines)


def test_what_no_build_of_a_cuda_version_can_do() -> None:
    assert wheels.is_impossible((7, 0), "13.0") and not wheels.is_impossible((7, 0), "12.8")
    assert wheels.is_impossible((12, 0), "12.6") and not wheels.is_impossible((12, 0), "13.0")
    assert not wheels.is_impossible((7, 0), "")
