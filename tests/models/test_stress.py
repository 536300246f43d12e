"""The self-test of a device runs on this CPU, and finds what a broken one would do."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.hardware.masks import VARIABLES
from engine.protocol.home import Home
from engine.protocol.messages import Device
from engine.workers import doctor, mending, stress, stress_device
from engine.workers.device_checks import Check
from tests import fake_nvml

CPU = torch.device("cpu")
MB = 1 << 20


def test_a_device_that_is_well_has_no_wrong_result() -> None:
    found = stress_device.try_products(CPU, 0.1, 256) | stress_device.try_memory(CPU, 60.0, 24 * MB)
    assert not found["wrong"] and not found["flipped"] and found["products"] >= 2 and found["flops"] > 0
    assert found["tested"] == 24 * MB and found["patterns"] == len(stress_device.PATTERNS)
    assert found["dtypes"] == ["float32", "bfloat16"]


@pytest.mark.parametrize("dtype", list(stress_device.AMPLITUDES))
def test_the_expected_product_is_exact_whatever_the_order_of_sums(dtype: torch.dtype) -> None:
    left, right, expected = stress_device.make_factors(CPU, dtype, 256)
    exact = left.double() @ right.double()
    assert torch.equal(exact, expected.double()), "the product itself cannot be written in this dtype"
    parts = [left[:, at::3].float() @ right[at::3].float() for at in range(3)]
    halves = [part.to(dtype) for part in parts]  # as a kernel that adds partial sums in the dtype
    assert torch.equal((halves[2] + halves[0]) + halves[1], expected)


def test_a_wrong_bit_in_any_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += 1
        product = left @ right
        if done == 4:  # after one of each dtype before the first round
            bits = product.view(torch.int32 if product.dtype == torch.float32 else torch.int16)
            bits[200, 17] ^= 1
        return product

    monkeypatch.setattr(stress_device, "multiply", multiply)
    found = stress_device.try_products(CPU, 0.0, 256)
    assert found["products"] == 2 and found["wrong"] == 1


@pytest.mark.parametrize("pattern", range(len(stress_device.PATTERNS)))
def test_a_changed_word_of_memory_is_found_in_every_pattern(pattern: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def read_back(memory: torch.Tensor) -> torch.Tensor:
        nonlocal read
        if read == pattern:
            memory[memory.numel() - 5] ^= 1 << 40
        read += 1
        return memory

    monkeypatch.setattr(stress_device, "read_back", read_back)
    assert stress_device.try_memory(CPU, 60.0, 8 * MB)["flipped"] == 1


def result(**given: Any) -> dict[str, Any]:
    well = {"products": 9, "wrong": 0, "dtypes": ["float32"], "flops": 1e12, "first_speed": 1e12, "last_speed": 1e12,
            "free": 8e9, "tested": 7e9, "patterns": 5, "flipped": 0, "bandwidth": 1e12, "temperature": 70.0,
            "clock": 1900.0, "clock_max": 1980.0, "throttled": []}  # fmt: skip
    return well | given


@pytest.mark.parametrize(
    ("given", "name", "ok", "words"),
    [
        ({"wrong": 1}, "products", False, "1 gave WRONG results"),
        ({"flipped": 3}, "pattern", False, "3 words came back CHANGED"),
        ({"flops": 6e11}, "products", None, "60% of the best card"),
        ({"bandwidth": 5e11}, "bandwidth", None, "50% of the best card"),
        ({"last_speed": 7e11}, "load", None, "70 % of that at the beginning"),
        ({"throttled": ["heat"]}, "load", None, "throttled: heat"),
        ({"error": "the process was ended by signal 11"}, "load", False, "signal 11"),
    ],
)
def test_the_card_that_differs_is_named(given: dict[str, Any], name: str, ok: bool | None, words: str) -> None:
    ill = given if "error" in given else result(**given)
    checks = list(stress.describe([("GPU 0", "H200", result()), ("GPU 1", "H200", ill), ("GPU 2", "T4", result())]))
    (found,) = (check for check in checks if not check.ok)
    assert found.detail.startswith("GPU 1") and (found.name, found.ok) == (name, ok) and words in found.detail
    assert found.mend and bool(found.code) == (ok is False)


def test_a_card_at_its_power_limit_is_well() -> None:
    checks = list(stress.describe([("GPU 0", "H200", result(throttled=["power_cap"]))]))
    assert all(check.ok for check in checks) and "at its power limit" in checks[-1].detail


def test_no_other_device_is_tested_in_the_place_of_a_card_that_torch_cannot_use() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    found = stress_device.examine(0.1, "card")
    (check,) = stress.describe([("GPU 0", "H200", found)])
    assert check.ok is None and "not tested" in check.detail and check.mend


def test_a_card_is_tested_only_if_it_is_certain_that_nobody_needs_it(
    bare_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int | None] = []

    def start(seconds: float, card: Device | None, cards: Sequence[Device]) -> Any:
        started.append(card.index if card else None)
        return stress.Test("", card, subprocess.Popen(["true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    def find(*given: dict[str, Any]) -> list[str]:
        started.clear()
        cards.write(*(fake_nvml.make_card(at, **each) for at, each in enumerate(given)))
        return [check.detail for check in stress.check_devices(1.0, bare_home) if "not tested" in check.detail]

    cards = fake_nvml.install(tmp_path, monkeypatch)
    monkeypatch.setattr(stress, "_start", start)
    monkeypatch.setattr(stress, "_read", lambda test, deadline: {"untested": "x", "mend": "y"})
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    hidden = {"refuse": {"nvmlDeviceGetComputeRunningProcesses": 4}}
    used = [{"processes": [{"pid": 7, "memory": 9}]}, {"used": 30 << 30}, {"utilisation": 60}]
    used += [hidden | {"refuse": hidden["refuse"] | {"nvmlDeviceGetMemoryInfo": 3}}]
    for each in used:
        find(each)
        assert started == [], each
    find({}, hidden, *used)
    assert started == [0, 1]
    monkeypatch.setattr(stress, "_list_given", lambda home: {0: "r-1"})
    assert "r-1" in find({}, {})[0] and started == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    find({}, {}, {})
    assert started == [2]


@pytest.mark.slow
def test_the_command_tests_this_cpu(home: Home) -> None:
    command = [sys.executable, "-P", "-m", "engine.workers.doctor", "--home", str(home.root), "--json", "--stress=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert [check["name"] for check in document["checks"]] == list(stress.SLOTS) and done.returncode == 0
    assert all(check["detail"].startswith("CPU: ") for check in document["checks"])


# ── single checks, and mending ──


def test_checks_are_run_by_name_and_a_misspelt_one_is_explained(
    bare_home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, doctor.check_disk, doctor.check_trials))
    for words, status, said in (
        (["disk"], 0, ["disk"]),
        (["python", "disk"], 0, ["python", "disk"]),
        (["path"], 0, ["path"]),
        ([], 0, ["python", "disk"]),
        (["dsik"], 2, "did you mean disk?"),
        (["/nonexistent"], 2, "The checks are python, disk, path"),
        (["disk", "--stress=1"], 2, "a run of the doctor of their own"),
    ):
        monkeypatch.setattr(sys, "argv", ["doctor", *words, "--home", str(bare_home.root), "--json"])
        assert doctor.main() == status
        out, err = capsys.readouterr()
        assert said in err if isinstance(said, str) else [each["name"] for each in json.loads(out)["checks"]] == said
    names = doctor.list_names()
    assert list(names) == ["python", "disk", "path"]


def test_only_safe_commands_are_run_each_once_and_after_a_yes(
    bare_home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(mending, "_run", lambda words, home: ran.append(words) or 0)
    checks = [
        Check("model", None, "not here", "cockpit model pull m", fix=("model", "pull", "m")),
        Check("path", False, "failed", "cockpit doctor --again", fix=("doctor", "path", "--again")),
        Check("path", False, "failed", "cockpit doctor --again", fix=("doctor", "path", "--again")),
        Check("driver", False, "too old", "install another driver"),
        Check("disk", True, "60 GB"),
    ]
    done = mending.mend(checks, bare_home, also_wanted=False, yes=True)
    assert ran == [("doctor", "path", "--again")] and [each.name for each in done] == ["path"]
    assert "install another driver" in capsys.readouterr().err
    ran.clear()
    mending.mend(checks, bare_home, also_wanted=True, yes=True)
    assert ran[0] == ("model", "pull", "m") and len(ran) == 2
    ran.clear()
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\ny\n"))
    mending.mend(checks[:2], bare_home, also_wanted=True, yes=False)
    assert ran == [("doctor", "path", "--again")]
    with pytest.raises(ValueError, match="--yes"):
        mending.check_can_ask(yes=False)
