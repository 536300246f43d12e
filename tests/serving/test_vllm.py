"""The hand-over to vLLM: its command line, what it does not serve, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.serving import vllm
from engine.serving.settings import Settings
from engine.serving.vllm import RANKS, VllmServer, build_arguments, check_adapter
from tests import fake_nvml
from tests.fake_nvml import make_card
from tests.training.harness import make_model

FAKE = Path(__file__).parents[1] / "fake_vllm"

Serve = Callable[..., dict[str, Any]]


@pytest.fixture
def serve(bare_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts the stand-in on a tiny model, on a host with four cards; returns what it was started with."""
    model = make_model(tmp_path / "model")
    monkeypatch.setenv("FAKE_VLLM", str(tmp_path / "told.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), str(Path(__file__).parents[2])]))
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2")
    monkeypatch.setattr(vllm, "GRACE", 0.3)
    cards = fake_nvml.install(tmp_path, monkeypatch)
    cards.write(*(make_card(at, used=used * 10**9) for at, used in enumerate((0, 9, 4, 7))))
    running: list[VllmServer] = []

    def start(**given: Any) -> dict[str, Any]:
        settings = Settings(target=str(model), backend="vllm", port=find_port(), **given)
        settings.check()
        target = targets.resolve(settings.target, bare_home, tmp_path)
        running.append(VllmServer(target, settings, bare_home, lambda *_: None))
        told: dict[str, Any] = json.loads((tmp_path / "told.json").read_text())
        return told | {"server": running[-1]}

    yield start
    for server in running:
        server.close(0)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_vllm_sees_the_devices_that_were_chosen_and_nothing_of_it_is_left(serve: Serve) -> None:
    told = serve(devices=[2, 3], context=4096, memory_share=0.5, arguments=["--swap-space", "2", "--max-num-seqs", "3"])
    assert told["mask"] == "2,3" and told["tensor_parallel_size"] == 2
    assert (told["max_model_len"], told["gpu_memory_utilization"]) == (4096, 0.5)
    assert (told["swap_space"], told["max_num_seqs"]) == ("2", 3), "the user's own arguments win"
    server = told["server"]
    assert server.figures()["running"] == 2.0 and "GPU 2, 3" in server.device
    server.close(0)
    assert not [pid for pid in told["pids"] if is_alive(pid)], "it is deaf to SIGTERM, and so is its engine"


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_without_devices_it_gets_the_one_with_most_free_memory_of_its_mask(serve: Serve) -> None:
    told = serve()
    assert told["mask"] == "2" and told["tensor_parallel_size"] == 1 and told["max_model_len"] is None


def test_devices_that_are_not_there_are_refused(serve: Serve) -> None:
    for devices in ([0], [2, 2]):
        with pytest.raises(ProblemError) as raised:
            serve(devices=devices)
        assert raised.value.problem.code == "profile.host" and "3, 1, 2" in raised.value.problem.cause


def write_adapter(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | settings))
    return folder


def test_each_rank_becomes_one_that_vllm_takes(tmp_path: Path) -> None:
    for rank in range(1, 513):
        target = targets.Target(label="t", base="b", adapter=write_adapter(tmp_path / "a", r=rank))
        given = build_arguments(target, Settings(target="t", backend="vllm"), "b", 1)
        most = int(given[given.index("--max-lora-rank") + 1])
        assert most in RANKS and most >= rank and not any(rank <= other < most for other in RANKS)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "IA3"},
        {"peft_type": "VERA"},
        {"peft_type": "PREFIX_TUNING"},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"trainable_token_indices": [1]},
        {"r": 513},
    ],
)
def test_adapters_that_vllm_does_not_serve_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ProblemError) as raised:
        check_adapter(write_adapter(tmp_path / "a", **settings))
    assert raised.value.problem.code == "serving.adapter_unsupported" and "merged" in raised.value.problem.hint


def test_plain_adapters_are_served(tmp_path: Path) -> None:
    for settings in ({}, {"use_rslora": True}, {"bias": "none", "modules_to_save": None, "rank_pattern": {}}):
        check_adapter(write_adapter(tmp_path / "a", **settings))


def test_settings_of_vllm_are_refused_without_it() -> None:
    for given in ({"devices": [0]}, {"context": 5}, {"memory_share": 0.5}, {"arguments": ["--x"]}):
        with pytest.raises(ValueError, match="only be set with --backend vllm"):
            Settings(target="t", **given).check()
    for wrong in ({"memory_share": 1.5}, {"context": -1}):
        with pytest.raises(ValueError, match="must be"):
            Settings(target="t", backend="vllm", **wrong).check()
