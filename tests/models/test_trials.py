"""A fast path is used where it is right and faster, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.models import trials
from engine.models.trials import Trials, Verdict
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

RIGHT = torch.arange(1.0, 5.0)


def plain() -> list[Any]:
    time.sleep(0.002)
    return [RIGHT]


def fast() -> list[Any]:
    return [RIGHT + 1e-7]


def slow() -> list[Any]:
    time.sleep(0.006)
    return [RIGHT]


def wrong() -> list[Any]:
    return [RIGHT * 1.1]


def not_a_number() -> list[Any]:
    return [RIGHT / 0 * 0]


def of_another_shape() -> list[Any]:
    return [RIGHT[None]]


def fails() -> list[Any]:
    raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid\nmore")


def too_large() -> list[Any]:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def told() -> list[Verdict]:
    return []


@pytest.fixture
def device(bare_home: Home, told: list[Verdict]) -> Trials:
    return Trials(bare_home, "cpu", "a CPU", told.append)


def test_a_path_that_is_right_and_faster_is_used(device: Trials, told: list[Verdict]) -> None:
    verdict = device.decide("Fast path", plain, fast, tolerance=1e-5)
    assert verdict.used and verdict.speedup > 1 and 0 < verdict.difference < 1e-5 and told == [verdict]
    assert device.decide("Fast path", fails, fails, tolerance=1e-5) == verdict, "it is kept, and nothing is tried again"
    assert told == [verdict]


@pytest.mark.parametrize(
    ("path", "reason", "failed"),
    [
        (slow, "only 0.", False),
        (wrong, "differ by 0.1", True),
        (not_a_number, "differ by nan", True),
        (of_another_shape, "differ by inf", True),
        (fails, "RuntimeError: Triton Error [CUDA]: device kernel image is invalid", True),
    ],
)
def test_any_other_path_is_not(
    device: Trials, told: list[Verdict], path: Callable[[], list[Any]], reason: str, failed: bool
) -> None:
    verdict = device.decide("path", plain, path, tolerance=1e-3)
    assert not verdict.used and reason in verdict.reason and verdict.failed == failed and "\n" not in verdict.reason
    assert device.decide("path", plain, fast, tolerance=1e-3).reason == verdict.reason


def test_a_path_that_must_be_faster_still_is_not_used(device: Trials) -> None:
    assert not device.decide("path", plain, plain, tolerance=1e-3, faster=1.9).used


def test_a_kept_speed_is_compared_with_what_is_wanted_now(device: Trials) -> None:
    assert not device.decide("path", plain, slow, tolerance=1e-3).used
    assert device.decide("path", plain, slow, tolerance=1e-3, faster=0.0).used, "it is right, and demanded"
    assert not device.decide("path", plain, slow, tolerance=1e-3).used
    assert not device.decide("wrong", plain, wrong, tolerance=1e-3).used
    assert not device.decide("wrong", plain, wrong, tolerance=1e-3, faster=0.0).used


@pytest.mark.parametrize("harmless", [True, False])
def test_a_harmless_path_leaves_no_verdict_while_it_is_tried(harmless: bool, device: Trials) -> None:
    kept: list[Verdict | None] = []

    def look() -> list[Any]:
        kept.append(device.read("path"))
        return [RIGHT]

    device.decide("path", plain, look, tolerance=1, harmless=harmless)
    assert (kept[0] is None) == harmless and device.read("path") is not None


def test_want_of_memory_is_no_verdict(device: Trials) -> None:
    assert not device.decide("path", plain, too_large, tolerance=1e-3).used
    assert not device.decide("path", too_large, fast, tolerance=1e-3).used
    assert device.decide("path", plain, fast, tolerance=1e-3).used


def test_the_plain_paths_errors_are_raised(device: Trials) -> None:
    with pytest.raises(RuntimeError, match="Triton"):
        device.decide("path", fails, fast, tolerance=1e-3)
    assert device.read("path") is None, "that says nothing about the fast path"


def test_a_path_that_ends_its_process_is_not_tried_again(device: Trials, bare_home: Home) -> None:
    code = (
        "import os, sys, pathlib; from engine.models.trials import Trials; from engine.protocol.home import Home; "
        "Trials(Home(pathlib.Path(sys.argv[1])), 'cpu', 'a CPU').decide('path', lambda: [], lambda: os._exit(9), "
        "tolerance=1)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(bare_home.root)], env=os.environ, timeout=120)
    assert ended.returncode == 9
    assert device.decide("path", plain, fast, tolerance=1e-3).reason == "the process ended during its trial"


def test_a_path_that_breaks_the_device_ends_the_attempt_once(device: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", lambda *_, **__: fails())
    with pytest.raises(ProblemError) as lost:
        device.decide("path", plain, fails, tolerance=1e-3)
    assert lost.value.problem.code == "trial.device_lost"
    assert "kernel image" in device.decide("path", plain, fast, tolerance=1e-3).reason


def test_verdicts_belong_to_a_device_and_the_versions(bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Trials(bare_home, "cpu", "a CPU").folder
    assert first != Trials(bare_home, "cpu", "another CPU").folder
    monkeypatch.setattr(trials, "list_versions", lambda: {"torch": "9"})
    assert first != Trials(bare_home, "cpu", "a CPU").folder


def test_verdicts_are_listed_and_forgotten(device: Trials, bare_home: Home) -> None:
    device.decide("one", plain, fast, tolerance=1e-3)
    device.decide("two", plain, wrong, tolerance=1e-3)
    (device.folder / "three.json").write_text("{")
    (found,) = trials.list_verdicts(bare_home).values()
    assert [(verdict.name, verdict.used) for verdict in found] == [("one", True), ("two", False)]
    trials.forget(bare_home)
    assert trials.list_verdicts(bare_home) == {}


def test_the_doctor_shows_what_came_of_them(device: Trials, bare_home: Home) -> None:
    from engine.workers import doctor

    device.decide("one", plain, fast, tolerance=1e-3)
    device.decide("two", plain, wrong, tolerance=1e-3)
    used, failed = doctor.check_trials(bare_home)
    assert used.ok and "one is used: " in used.detail and not used.mend
    assert failed.ok is None and "two is not used: its results differ" in failed.detail and "--again" in failed.mend


def test_a_verdict_that_cannot_be_kept_is_used_all_the_same(device: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trials, "write_private", full)
    assert device.decide("path", plain, fast, tolerance=1e-3).used
