"""Terms of a forecast beside the traced step: freed blocks on a CPU, and what DeepSpeed holds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.profile import Profile, parse
from engine.training.forecast import zero
from engine.training.forecast.heap import Heap
from engine.training.forecast.trace import Trace
from engine.training.forecast.tracker import MemoryTracker
from engine.training.forecast.zero import Zero
from engine.training.parallel import deepspeed_config

MB = 1 << 20


def make(megabytes: int) -> torch.Tensor:
    return torch.empty(megabytes * MB, dtype=torch.uint8)


def test_a_gap_is_filled_by_what_fits_and_stays_otherwise() -> None:
    tracker, held = MemoryTracker(fake=False), []
    with tracker, tracker.measure(lambda peak: held.append((peak, tracker.heap.high))):
        first, kept = make(40), make(1)
        del first
        large = make(64)  # on top
        fits = make(30)  # in the gap
    assert held == [(95 * MB, 105 * MB)] and tracker.live == 95 * MB
    del kept, fits
    with tracker:
        whole = make(40)  # the gaps have grown together
        assert tracker.heap.high == 105 * MB
        tracker.recount(whole, 1 * MB)
        large.untyped_storage().resize_(0)
    assert tracker.live == MB and tracker.heap.high == 105 * MB


def test_blocks_of_a_heap_never_overlap_and_its_gaps_are_what_is_left() -> None:
    rng = random.Random(1)
    for _ in range(8):
        heap, live, most = Heap(), dict[int, int](), 0
        for _ in range(200):
            if live and rng.random() < 0.48:
                address = rng.choice(list(live))
                heap.free(address, live.pop(address))
            else:
                size = rng.randrange(5000)
                live[heap.allocate(size)] = size
            spans = sorted((address, max(1, -(-size // 64)) * 64) for address, size in live.items())
            ends = [start + size for start, size in spans]
            assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
            used, most = sum(size for _, size in spans), max(most, sum(size for _, size in spans))
            assert (ends[-1] if ends else 0) - used == sum(size for size, _ in heap._gaps)
        assert heap.high >= most


def make_profile(launch: str, folder: Path) -> Profile:
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    lines = ("name: mine", "model: {base: smollm2-135m-instruct}", "data: {train: [{source: a.jsonl}]}")
    return parse("\n".join((*lines, f"launch: {launch}\n")), "profile", folder, forecast=True)


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ("", Zero(3, overlaps=True)),
        (", offload: cpu", Zero(3, True, True, overlaps=True)),
        (", deepspeed: {zero_optimization: {stage: 2}}", Zero(2)),
        (", deepspeed: {zero_optimization: {stage: 1, reduce_bucket_size: 2.0e8, overlap_comm: true}}",
         Zero(1, bucket=2 * 10**8, overlaps=True)),
        (", deepspeed: {zero_optimization: {stage: 2, reduce_bucket_size: auto, offload_optimizer: {device: cpu}}}",
         Zero(2, True)),
        (", deepspeed: {zero_optimization: {stage: 3, stage3_max_live_parameters: 1000000, overlap_comm: false}}",
         Zero(3, live=10**6)),
    ],
)  # fmt: skip
def test_a_ds_config_is_read(section: str, wanted: Zero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_config, "_find_lack", lambda: "")
    profile = make_profile(f"{{processes: 2, strategy: deepspeed{section}}}", tmp_path)
    assert zero.read(profile, 2) == wanted and zero.read(profile, 1) is None
    assert zero.replace_strategy(profile, wanted).launch.strategy == ("fsdp" if wanted.stage == 3 else "zero1")
    assert zero.read(make_profile("{processes: 2, strategy: zero2}", tmp_path), 2) is None


def test_a_size_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_config, "_find_lack", lambda: "")
    for wrong in ("many", "{}", "[1]", ".inf"):
        section = f"{{zero_optimization: {{stage: 2, reduce_bucket_size: {wrong}}}}}"
        profile = make_profile(f"{{processes: 2, strategy: deepspeed, deepspeed: {section}}}", tmp_path)
        with pytest.raises(ValueError, match="reduce_bucket_size"):
            zero.read(profile, 2)


def make_trace(trained: int, weights: int, world: int, stage: int) -> Trace:
    share = world if stage == 3 else 1
    return Trace(
        weights=4 * weights // share, gradients=4 * trained // share, states=8 * trained // world,
        whole={"weights": weights, "trained": trained},
    )  # fmt: skip


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_rank_takes_less_the_more_is_divided_and_the_more_is_on_the_host(world: int) -> None:
    count = 7 * 10**9

    def total(stage: int, **more: Any) -> int:
        traced, found = make_trace(count, count, world, stage), Zero(stage, **more)
        own = traced.weights + traced.gradients + traced.states
        gone = sum(zero.list_offloaded(found, traced).values())
        return own - gone + sum(zero.list_terms(found, traced, "cuda", world).values())

    assert total(1) > total(2) > total(3)
    assert total(2) > total(2, states_on_host=True) and total(3) > total(3, states_on_host=True, weights_on_host=True)
    assert total(2, overlaps=True) - total(2) == 4 * zero.BUCKET and total(3, live=10**8) < total(3)
    traced = make_trace(count, count, world, 2)
    assert zero.count_on_host(Zero(2, states_on_host=True), traced, world) == 16 * count // world
    assert zero.count_on_host(Zero(2), traced, world) == 0
