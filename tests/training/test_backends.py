"""Any back end that is registered with torch's accelerator API trains; what a device cannot do is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.models import devices
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start
from engine.protocol.messages import ProblemError
from engine.training import ranks
from tests.training import warm
from tests.training.harness import Supervised
from tests.training.in_process import entries, series, train

SOURCE = Path(__file__).parent / "backend" / "slate.cpp"
CHANGES = (
    "training.max_steps=4",
    "checkpoint.every_steps=2",
    "evaluation.every_steps=2",
    "training.threads=1",
)


@pytest.fixture
def slate(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    """The back end as a library. It takes twenty seconds to compile, so pytest's cache keeps it for this source and
    torch."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    name = f"slate-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}-{torch.__version__}.so"
    cache = getattr(pytestconfig, "cache", None)
    library = (cache.mkdir("slate") if cache else tmp_path) / name
    if not library.exists():
        places = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        made = tmp_path / "made.so"
        line = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", abi, *places[:-1], str(SOURCE), "-o", str(made)]
        subprocess.run([*line, places[-1], "-lc10", "-ltorch_cpu", "-ltorch"], check=True)
        shutil.move(made, library)
    return library


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the test back end is C++ and wants a compiler")
def test_a_back_end_that_nobody_knows_trains_as_a_cpu_does(
    prepared: dict[str, Any], slate: Path, tmp_path: Path
) -> None:
    (tmp_path / "prepared.json").write_text(json.dumps(prepared))
    worker = ["tests.training.backend.slate", slate, tmp_path / "slate", tmp_path / "prepared.json", *CHANGES]
    log = tmp_path / "log.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    assert warm.start([*map(str, worker)], 1, environment, log).wait() == 0, log.read_text()[-4000:]
    found = json.loads(log.read_text().splitlines()[-1])
    assert found["device"] == "slate"
    assert found["refusal"] == "slate does not compute in float16"
    assert found["again"] == found["losses"] and found["resumed"] == "exact"

    run = train(Home(tmp_path / "cpu"), "run", prepared, *CHANGES)
    assert list(found["losses"].values()) == pytest.approx(list(series(run, "train/loss").values()), rel=1e-4)
    held_out = [entry.values["eval/loss"] for entry in entries(run, Evaluation)]
    assert found["held_out"][: len(held_out)] == pytest.approx(held_out, rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the test back end is C++ and wants a compiler")
def test_two_ranks_of_a_back_end_that_nobody_knows(start_run: Callable[..., Supervised], slate: Path) -> None:
    two = ("training.micro_batch=1", "launch.processes=2")
    run = start_run("slate", *CHANGES, *two)
    run.start(processes=2, fault=f"slate:{slate}")
    assert run.wait() == 0, run.log()
    assert run.entries(Start)[0].facts["device"] == "slate" and run.entries(Start)[0].processes == 2
    host = start_run("host", *CHANGES, *two)
    host.train(processes=2)
    assert run.series("train/loss") == pytest.approx(host.series("train/loss"), rel=1e-4)


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "gloo"), ("cuda", "nccl"), ("xpu", "xccl")])
def test_gradients_go_by_the_back_end_of_their_device(kind: str, backend: str) -> None:
    assert ranks.find_backend(kind) == backend


def test_a_device_without_collectives_is_refused_for_several_processes() -> None:
    with pytest.raises(ProblemError, match="Several processes cannot train on vulkan") as refused:
        ranks.find_backend("vulkan")
    assert refused.value.problem.code == "device.no_collectives"


def test_a_card_without_bfloat16_refuses_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ProblemError, match="Tesla T4 does not compute in bfloat16") as refused:
        devices.choose_device("cuda", 0, "bfloat16")
    assert "float16" in refused.value.problem.hint


def test_what_a_device_cannot_multiply_is_refused_with_its_own_words() -> None:
    assert devices._explain_unsupported("cpu", "float32") == ""
    assert devices._explain_unsupported("cpu", "bfloat16") == ""
    assert devices._explain_unsupported("cpu", "int32")
