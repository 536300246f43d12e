"""The accelerator's set-up and figures, as far as a machine without one shows them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from engine.models import accelerator, loading
from engine.protocol.environment import ALLOCATOR, build_job_environment
from engine.protocol.messages import Rank
from tests.training.harness import make_model

FIGURES = {"allocated_bytes.all.current": 3, "reserved_bytes.all.current": 5, "allocated_bytes.all.peak": 7}


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices whose current one is 0 in every thread but the one that chose, as in CUDA. The second is chosen."""
    current = threading.local()
    monkeypatch.setattr(accelerator, "_chosen", None)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: setattr(current, "index", index))

    def statistics(index: int | None = None) -> dict[str, int]:
        return FIGURES if (getattr(current, "index", 0) if index is None else index) == 1 else {}

    monkeypatch.setattr(torch.accelerator, "memory_stats", statistics)
    accelerator.choose("cuda:1")


def test_every_loaded_model_attends_without_cudnn(tmp_path: Any) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    loading.load_model(str(make_model(tmp_path / "tiny")), dtype=torch.float32)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.usefixtures("second_device")
def test_another_thread_measures_the_device_of_this_process() -> None:
    rank = Rank(rank=1, pid=1)
    thread = threading.Thread(target=accelerator.measure_memory, args=(rank,))
    thread.start()
    thread.join()
    assert (rank.device_used, rank.device_reserved, rank.device_peak) == (3, 5, 7)
    assert accelerator.read_peak() == 7


def test_a_back_end_without_figures_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_chosen", 0)
    rank = Rank(rank=0, pid=1)
    accelerator.measure_memory(rank)
    accelerator.release()
    assert rank.resident > 0 and rank.device_peak == 0 and accelerator.read_peak() is None


def test_the_allocator_grows_its_segments_unless_the_user_has_tuned_it() -> None:
    assert build_job_environment({"PATH": "/bin"})[ALLOCATOR[0]] == "expandable_segments:True"
    for name in ALLOCATOR:
        tuned = build_job_environment({"PATH": "/bin", name: "max_split_size_mb:64"})
        assert {key: tuned[key] for key in ALLOCATOR if key in tuned} == {name: "max_split_size_mb:64"}
    assert build_job_environment({"PATH": "/bin"}, {ALLOCATOR[1]: "x"})[ALLOCATOR[1]] == "x"
