"""What a card says about its memory: a real out-of-memory error, and the memory that others hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.models import accelerator
from engine.protocol.home import Home
from engine.protocol.journal import Ledger, Warn
from tests.training import faulty
from tests.training.in_process import entries, series, train

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
ROWS = 128
"""Of the set of long rows, all of which are a global batch."""
HOLD = """
import sys, torch
total = torch.cuda.get_device_properties(0).total_memory
held = torch.ones(max(int(0.13 * total), 5 << 29), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""
SEEN = """
import json, os, torch
from engine.hardware import listing
from engine.models import placement
named = placement.choose(0)
print(json.dumps({
    "device": named, "seen": [card.uuid for card in listing.list_visible()], "count": torch.cuda.device_count(),
    "uuid": str(torch.cuda.get_device_properties(0).uuid), "sum": float(torch.ones(3, device=named).sum()),
}))
"""


@pytest.fixture
def limit(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Home, Any], None]]:
    """Leaves memory for micro-batches of half of all rows, and not for all of them. On a CPU the error is simulated."""
    import torch

    from engine.training import model

    def simulate(home: Home, prepared: Any) -> None:
        monkeypatch.setattr(model, "build", model.build)  # put back afterwards
        faulty.run_out(ROWS // 2 * 200)

    def set_limit(home: Home, prepared: Any) -> None:
        _, most, _ = _measure(home, prepared, ROWS)
        _, _, half = _measure(home, prepared, ROWS // 2)
        assert half < most, "no limit lies between the two"
        accelerator.release()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((half + most) / 2 / total)

    yield set_limit if device == "cuda" else simulate
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def _measure(home: Home, prepared: Any, rows: int) -> tuple[Any, int, int]:
    """A run with micro-batches of so many rows, and the bytes that it had allocated and reserved at most."""
    import torch

    accelerator.release()
    torch.cuda.reset_peak_memory_stats()
    run = train(home, f"rows-{rows}", prepared, *_size(rows))
    return run, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def _size(rows: int) -> tuple[str, ...]:
    return f"training.micro_batch={rows}", f"training.accumulation={ROWS // rows}", "training.max_steps=3"


def test_a_micro_batch_that_does_not_fit_is_halved(
    device: str, bare_home: Home, long_rows: dict[str, Any], limit: Callable[[Home, Any], None]
) -> None:
    whole = train(bare_home, "whole", long_rows, *_size(ROWS))
    limit(bare_home, long_rows)
    run = train(bare_home, "limited", long_rows, *_size(ROWS))
    cuts = [(entry.name, entry.new) for entry in entries(run, Ledger) if entry.name.startswith("training.")]
    assert cuts[:2] == [("training.micro_batch", ROWS // 2), ("training.accumulation", 2)]
    assert "memory.batch_cut" in {entry.code for entry in entries(run, Warn)}
    assert series(run, "train/loss") == pytest.approx(series(whole, "train/loss"), rel=5e-5)


@pytest.fixture(scope="session")
def large_rows(long_rows: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The long rows with a model of 240 million weights: a step of a small one takes less than a card's libraries."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(long_rows["base"], folder)
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 2048, 8192, 4
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 16, 4, 128
    LlamaForCausalLM(config).save_pretrained(folder)
    return long_rows | {"base": str(folder)}


SETTINGS = [
    ("training.micro_batch=8",),
    ("training.micro_batch=64", "model.dtype=bfloat16"),
    ("training.micro_batch=64", "model.dtype=bfloat16", "training.gradient_checkpointing=true"),
    ("adapter={kind: none}", "training.micro_batch=8", "model.dtype=bfloat16"),
    ("training.micro_batch=16", "model.dtype=bfloat16", "model.quantization=nf4"),
]


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: " ".join(changes))
def test_a_forecast_is_within_8_percent_of_the_real_peak(
    bare_home: Home, large_rows: dict[str, Any], changes: tuple[str, ...]
) -> None:
    import torch

    from engine.config.profile import parse
    from engine.models.base import load_tokenizer
    from engine.training.forecast import estimate
    from engine.training.forecast.hosts import Host
    from tests.training.harness import PROFILE

    changes = (*changes, "training.max_steps=2", "training.compile=false", "training.liger=false")
    changes = (*changes, "data.max_length=200", "training.rehearsal=false")
    profile = parse(PROFILE.format(base=large_rows["base"]), "test", Path("/"), changes, bare_home)
    given = estimate.Given(bare_home, large_rows, load_tokenizer(large_rows["base"], False, None), True, 0)
    found = estimate.estimate(profile, Host("cuda", "a card", 1, None, None), given)
    accelerator.release()
    torch.cuda.reset_peak_memory_stats()
    train(bare_home, "measured", large_rows, *changes)
    assert found["allocated_bytes"] == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.08)


def test_a_foreign_process_is_seen_and_waited_for(bare_home: Home) -> None:
    from engine.config.profile import parse
    from engine.hardware.listing import Listing
    from engine.supervisor.devices import Devices
    from tests.training.harness import PROFILE

    listing = Listing()
    before = listing.sample_devices()[0]
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        held = listing.sample_devices()[0]
        assert held.memory_used is not None and before.memory_used is not None
        assert held.memory_used > before.memory_used + (2 << 30)
        profile = parse(PROFILE.format(base="a/b"), "test", Path("/"), (), bare_home)
        chosen = Devices(lambda: [held], {}).assign("run-1", profile, {}, {})
        assert chosen.devices is None and "GPU 0" in chosen.words
        assert chosen.holders[0].memory is None or chosen.holders[0].memory > 2 << 30
    finally:
        process.communicate()


@pytest.mark.parametrize("beginning", [None, 12])
def test_a_mask_may_be_a_uuid(beginning: int | None) -> None:
    """The whole of it, or an unambiguous beginning."""
    import json

    from engine.hardware.listing import Listing

    card = Listing().sample_devices()[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": card.uuid[:beginning]}
    done = subprocess.run([sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["device"], told["seen"], told["count"], told["sum"]) == ("cuda:0", [card.uuid], 1, 3.0)
    assert card.uuid.endswith(told["uuid"])
