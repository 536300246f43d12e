"""A model goes to the card with most free memory, and nothing is opened on the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.inference.bulk import decode
from engine.models import devices, placement
from engine.protocol.messages import ProblemError
from tests import fake_nvml
from tests.fake_nvml import GB, Cards, make_card


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """A torch with CUDA, on which asking a card for its memory would open a context."""

    def open_context(*_: Any) -> Any:
        pytest.fail("this opens a context on a card")

    for name in ("mem_get_info", "get_device_properties", "set_device", "init"):
        monkeypatch.setattr(torch.cuda, name, open_context)
    found = fake_nvml.install(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "device_count", lambda: len(os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3").split(","))
    )
    monkeypatch.setattr(placement, "_placed", [])
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    found.write(*(make_card(at, used=used * GB) for at, used in enumerate((20, 3, 0, 12))))
    return found


def test_the_card_with_most_free_memory_comes_first(cards: Cards) -> None:
    assert placement.choose(GB) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,1,3,0" and os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    cards.write(*(make_card(at, used=used * GB) for at, used in enumerate((20, 3, 22, 12))))
    assert placement.choose(GB) == "cuda:1", "the mask does not change any more"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,1,3,0"


def test_a_mask_is_kept(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000,GPU-00000003")
    assert placement.choose(GB) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-00000003,GPU-00000000"


def test_a_mask_that_was_read_is_left_alone(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_has_read_mask", lambda: True)
    assert placement.choose(GB) == "cuda:2"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_no_room_says_who_holds_it(cards: Cards) -> None:
    held = {"used": 23 * GB, "processes": [{"pid": os.getpid(), "memory": 22 * GB}]}
    cards.write(make_card(0, **held), make_card(1, used=23 * GB, refuse={"nvmlDeviceGetComputeRunningProcesses": 4}))
    with pytest.raises(ProblemError) as raised:
        placement.choose(8 * GB)
    assert f"pid {os.getpid()}: 22.0 GB" in raised.value.problem.cause
    assert "cannot be listed" in raised.value.problem.cause


def test_a_card_that_does_not_report_its_memory_is_used(cards: Cards) -> None:
    cards.write(make_card(0, refuse={"nvmlDeviceGetMemoryInfo": 3}))
    assert placement.choose(80 * GB) == "cuda:0"


def test_each_process_of_a_file_of_prompts_sees_one_card(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,0")
    cards.write(*(make_card(at, used=used * GB) for at, used in enumerate((20, 0, 0, 0))))
    assert decode.choose_devices(None, GB) == ["cuda:0", "cuda:1"]
    name, environment = placement.isolate("cuda:1")
    assert name == "cuda:0" and environment["CUDA_VISIBLE_DEVICES"] == "2"
    assert decode.choose_devices(["2", "cpu"], GB) == ["cuda:2", "cpu"]
    with pytest.raises(ValueError, match="there is no device cuda:3"):
        decode.choose_devices(["3"], GB)


def test_without_nvml_the_first_card_with_room_is_asked_and_no_other(
    cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.path.unlink()
    asked: list[int] = []
    rooms = [GB, 9 * GB, 20 * GB, 20 * GB]

    def ask(at: int) -> tuple[int, int]:
        asked.append(at)
        return rooms[at], 24 * GB

    monkeypatch.setattr(torch.cuda, "mem_get_info", ask)
    assert placement.choose(8 * GB) == "cuda:1" and asked == [0, 1]
    assert placement.isolate("cuda:3")[1]["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_worker_refuses_a_card_that_its_torch_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for name, answer in {
        "get_device_name": "Tesla V100",
        "get_device_capability": (7, 0),
        "get_arch_list": ["sm_75", "sm_80", "sm_90"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    with pytest.raises(ProblemError, match="cannot compute on Tesla V100") as raised:
        devices.choose_device("cuda", 0, "float16")
    assert raised.value.problem.code == "device.no_kernels" and "cu126" in raised.value.problem.hint


def test_a_model_that_fits_no_card_alone_is_spread_over_all(cards: Cards) -> None:
    assert placement.spread(20 * GB).room is None, "one is enough"
    os.environ.pop("CUDA_VISIBLE_DEVICES"), placement._placed.clear()
    found = placement.spread(40 * GB)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,1,3,0" and found.device == "cuda:0"
    assert found.room is not None and [*found.room] == [0, 1, 2, 3], "in the order of the new mask"
    assert [round(room / GB / 0.9) for room in found.room.values()] == [24, 21, 12, 4]
    assert found.load_arguments == {"device_map": "auto", "max_memory": found.room}
    assert "spread over 4 GPUs" in found.note and "GPU 2 (" in found.note


def test_a_started_process_spreads_by_its_own_numbers(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_has_read_mask", lambda: True)
    cards.write(*(make_card(at, used=used * GB) for at, used in enumerate((20, 3, 23.5, 12))))
    found = placement.spread(30 * GB)
    assert found.device == "cuda:1" and found.room is not None and [*found.room] == [1, 3, 0], "one is full"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_cards_that_are_not_enough_together_are_refused_with_the_figures(cards: Cards) -> None:
    with pytest.raises(ProblemError, match="4 GPUs together have no room") as raised:
        placement.spread(60 * GB)
    problem = raised.value.problem
    assert problem.code == "memory.device_full" and "GPU 3 has" in problem.cause and "together 5" in problem.cause
    cards.write(make_card(0, used=20 * GB))
    with pytest.raises(ProblemError, match="No device has room"):
        placement.spread(60 * GB)


def test_parts_outside_the_cards_are_refused() -> None:
    class Model:
        hf_device_map = {"embed": 0, "layers.0": 1, "layers.1": "disk"}

    with pytest.raises(ProblemError, match="no room for this model") as raised:
        placement.check_spread(Model())
    assert "stay on disk" in raised.value.problem.cause
    assert placement.is_spread(Model())
    Model.hf_device_map = {"": "cpu"}  # type: ignore[dict-item]
    assert not placement.is_spread(Model())


def test_the_plan_that_accelerate_makes_of_it_uses_the_cards_alone() -> None:
    """Its own arithmetic, on a model without memory: every layer whole on one card, no card above its room."""
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import compute_module_sizes
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=12, vocab_size=400)
    with init_empty_weights():
        model = LlamaForCausalLM(config)
    sizes = compute_module_sizes(model)
    room = dict.fromkeys(range(3), sizes[""] // 2)
    plan = infer_auto_device_map(model, max_memory=room, no_split_module_classes=["LlamaDecoderLayer"])
    assert {0, 1} <= {*plan.values()} <= {0, 1, 2}
    for card in room:
        assert sum(sizes[name] for name, place in plan.items() if place == card) <= room[card]
