"""Pure rules: which run gets which devices, and how a worker's end is explained."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engine.config.profile import find, load
from engine.supervisor.crash_report import WorkerExit, report_crash
from engine.supervisor.scheduler import Demand, assign, pick_first


def test_devices_go_to_the_head_of_the_queue_and_no_run_overtakes() -> None:
    queue = [Demand("big", 4, None), Demand("small", 1, None)]
    assert pick_first(queue, 4, {0}, False) is None
    assert pick_first(queue, 4, set(), False) == ("big", [0, 1, 2, 3])
    assert assign(Demand("r", 2, None), 4, {0, 2}, False) == [1, 3]
    assert assign(Demand("r", 1, (2,)), 4, {2}, False) is None
    assert assign(Demand("r", None, None), 2, set(), False) == [0, 1]


def test_without_devices_one_run_at_a_time() -> None:
    assert assign(Demand("r", 2, None), 0, set(), False) == []
    assert assign(Demand("r", 1, None), 0, set(), True) is None


def test_what_can_never_start_is_refused() -> None:
    for demand, count in [(Demand("r", 1, (0,)), 0), (Demand("r", 9, None), 8), (Demand("r", 1, (8,)), 8)]:
        with pytest.raises(ValueError, match="asks for"):
            assign(demand, count, set(), False)


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
