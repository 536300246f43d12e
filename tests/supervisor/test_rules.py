"""Pure rules: which run gets which devices, and how a worker's end is explained."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engine.config.profile import find, load
from engine.supervisor.crash_report import WorkerExit, report_crash
from engine.supervisor.scheduler import Demand, assign


def test_devices_that_are_free_are_assigned() -> None:
    assert assign(Demand("r", 4, None), range(4), {0}, False) is None
    assert assign(Demand("r", 4, None), range(4), set(), False) == [0, 1, 2, 3]
    assert assign(Demand("r", 2, None), range(4), {0, 2}, False) == [1, 3]
    assert assign(Demand("r", 1, (2,)), range(4), {2}, False) is None
    assert assign(Demand("r", None, None), range(2), set(), False) == [0, 1]
    assert assign(Demand("r", 2, None), (5, 4, 7), {4}, False) == [5, 7], "in the order of the mask"


def test_instances_of_a_divided_card_are_not_combined() -> None:
    assert assign(Demand("r", 1, None), (2, 3), {2}, False, {2, 3}) == [3]
    assert assign(Demand("r", 2, None), (0, 1, 2), set(), False, {2}) == [0, 1]
    assert assign(Demand("r", None, None), (2, 3), set(), False, {2, 3}) == [2]
    for demand in (Demand("r", 2, None), Demand("r", 2, (2, 3))):
        with pytest.raises(ValueError, match="asks for"):
            assign(demand, (2, 3), set(), False, {2, 3})


def test_without_devices_one_run_at_a_time() -> None:
    assert assign(Demand("r", 2, None), (), set(), False) == []
    assert assign(Demand("r", 1, None), (), set(), True) is None


def test_what_can_never_start_is_refused() -> None:
    for demand, count in [(Demand("r", 1, (0,)), 0), (Demand("r", 9, None), 8), (Demand("r", 1, (8,)), 8)]:
        with pytest.raises(ValueError, match="asks for"):
            assign(demand, range(count), set(), False)


TORCHRUN = """\
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : h
  rank      : 3 (local_rank: 3)
  exitcode  : -9 (pid: 77)
  error_file: <N/A>
"""


def test_a_crash_is_explained_with_the_runs_own_numbers(tmp_path: Path) -> None:
    profile = load(find("triples-qlora"))
    oom = report_crash(WorkerExit(-signal.SIGKILL, "", oom_killed=True), profile)
    assert "out-of-memory killer" in oom.title
    assert "training.micro_batch=4 with training.accumulation=2 (now 8 × 1" in oom.hint
    odd = load(find("triples-qlora"), ["training.micro_batch=9"])
    assert (
        "training.micro_batch=3 with training.accumulation=3 (now 9 × 1"
        in report_crash(WorkerExit(-signal.SIGKILL, "", oom_killed=True), odd).hint
    )
    rank = report_crash(WorkerExit(1, TORCHRUN), profile)
    assert rank.title == "Rank 3 died" and "SIGKILL" in rank.cause
    cuda = report_crash(WorkerExit(1, "x\ntorch.OutOfMemoryError: CUDA out of memory. Tried"), profile)
    assert "device memory" in cuda.hint
    assert report_crash(WorkerExit(-signal.SIGSEGV, ""), None).cause.startswith("a segmentation fault")
    assert report_crash(WorkerExit(-50, ""), None).cause == "killed by signal 50"
    assert report_crash(WorkerExit(5, ""), None).cause == "there is no output"
