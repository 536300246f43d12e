"""Where a step's time goes is told truly, and without waiting for a device."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.hardware import cards
from engine.protocol.home import Home
from engine.protocol.journal import Metrics
from engine.training import preflight, step_clock, utilisation
from engine.training.loop import TrainingLoop
from engine.training.methods.base import Method
from engine.training.ranks import Ranks
from engine.training.step_clock import NAMES, StepClock
from engine.training.supervised import Supervised
from tests.training.in_process import entries, train


class Time:
    """A clock that goes when it is told to; `perf_counter` for the loop, the device's queue for events."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(clock: StepClock, now: Time, seconds: dict[str, float]) -> None:
    for name, spent in seconds.items():
        now.now += spent
        clock.lap(name)
    clock.end_step()


INSIDE = {"data": 1.0, "wait": 0.5, "copy": 0.1, "forward": 2.0, "backward": 4.0, "reduction": 0.4, "optimizer": 1.0}


def test_the_split_is_that_of_the_steps_and_its_parts_make_one() -> None:
    now = Time()
    clock = StepClock("cpu", Ranks(), now)
    now.now += 50
    clock.begin()  # a rehearsal
    step(clock, now, INSIDE | {"": 7.0, "logging": 0.5, "evaluation": 0.5})
    values = clock.publish(clock.take_busy(), last=False)
    assert sum(values[f"time/{name}"] or 0.0 for name in NAMES) == pytest.approx(1.0)
    assert values["time/data"] == pytest.approx(0.1) and values["time/backward"] == pytest.approx(0.4)
    assert values["time/evaluation"] == pytest.approx(0.05) and values["time/saving"] == 0.0
    assert clock.publish([0.0], last=True) == {}  # no step since
    step(clock, now, INSIDE)
    values = clock.publish([0.0], last=False)  # without an evaluation: its share of the whole attempt is half as large
    assert values["time/evaluation"] == pytest.approx(0.5 / 19) and values["time/data"] == pytest.approx(18 / 19 / 9)


def test_a_split_is_published_every_few_seconds_and_at_the_end() -> None:
    now = Time()
    clock = StepClock("cpu", Ranks(), now)
    quick = {name: seconds / 90 for name, seconds in INSIDE.items()}
    published = []
    for _ in range(120):  # 12 seconds
        step(clock, now, quick)
        published.append(bool(clock.publish(clock.take_busy(), last=False)))
    assert sum(published) == 2 and not published[0]
    step(clock, now, quick)
    assert clock.publish(clock.take_busy(), last=True)


def test_the_slowest_rank_is_named_with_its_factor_whoever_waits() -> None:
    now = Time()
    clocks = [StepClock("cpu", Ranks(rank=rank, world=4), now) for rank in range(4)]
    for rank, clock in enumerate(clocks):
        own = {"data": 0.2, "forward": 2.8 if rank == 3 else 1.8, "wait": 0.0 if rank == 3 else 1.0, "reduction": 9.0}
        clock.begin()
        step(clock, now, own)
    busy = [sum(column) for column in zip(*(clock.take_busy() for clock in clocks), strict=True)]
    values = clocks[0].publish(busy, last=True)
    assert values["time/slowest_rank"] == 3 and values["time/slowest_factor"] == pytest.approx(1.5)
    assert not any("slowest" in name for name in StepClock("cpu", Ranks(), now)._describe())


def test_padding_is_counted_in_all_batches_of_a_batch() -> None:
    clock = StepClock("cpu", Ranks(), Time())
    clock.add_batch({"input_ids": torch.zeros(2, 10), "labels": torch.zeros(2, 10)}, 15)
    clock.add_batch({"chosen": {"input_ids": torch.zeros(1, 10)}, "rejected": {"input_ids": torch.zeros(1, 10)}}, 15)
    clock.add_batch({"prompts": ["a"]}, 4)  # without places, it says nothing about padding
    assert (clock.tokens, clock.places) == (30, 40)


class Events:
    """A device whose queue is `behind` the loop: it reaches an event so many seconds after that was recorded. Each
    event takes a second of the device's time for each letter of the duty before it."""

    def __init__(self, now: Time, behind: float) -> None:
        self.now, self.behind, self.made, self.asked = now, behind, 0, 0
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                device.made += 1

            def record(self) -> None:
                self.at = device.now.now + device.behind

            def query(self) -> bool:
                device.asked += 1
                return device.now.now >= self.at

            def elapsed_time(self, end: Any) -> float:
                assert self.query() and end.query(), "this would wait for the device"
                return float((end.at - self.at) * 1e3)

            def synchronize(self) -> None:
                raise AssertionError("this waits for the device")

            wait = synchronize

        self.Event = Event


@pytest.mark.parametrize("behind", [0.0, 3.0, 1000.0])
def test_a_device_is_never_waited_for(behind: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Time()
    device = Events(now, behind)
    monkeypatch.setattr(torch, "fake", device, raising=False)
    clock = StepClock("fake", Ranks(), now)
    for _ in range(20):
        clock.begin()
        step(clock, now, {"data": 1.0, "wait": 0.1, "copy": 0.5, "forward": 2.0, "backward": 4.0, "reduction": 1.0,
                          "": 0.0, "optimizer": 1.5})  # fmt: skip
    assert device.made <= 14  # those of two steps
    values = clock.publish(clock.take_busy(), last=True)
    computed = [values[f"time/{name}"] or 0.0 for name in step_clock.COMPUTED]
    assert sum(computed) == pytest.approx(8 / 10.1)
    if behind < 100:
        assert computed == pytest.approx([each / 10.1 for each in (0.5, 2.0, 4.0, 1.5)])
    else:
        assert computed[1] == pytest.approx(8 / 10.1)  # nothing is known of its parts


def test_a_pause_within_a_step_is_no_work_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Time()
    monkeypatch.setattr(torch, "fake", Events(now, 0.0), raising=False)
    clock = StepClock("fake", Ranks(), now)
    for _ in range(3):
        clock.begin()
        step(clock, now, {"wait": 0.0, "forward": 2.0, "backward": 4.0, "reduction": 1.0, "": 50.0, "optimizer": 1.0})
    values = clock.publish(clock.take_busy(), last=True)
    assert values["time/optimizer"] == pytest.approx(1 / 8) and values["time/backward"] == pytest.approx(4 / 8)


def test_a_cpu_and_what_has_no_events_have_no_device_laps() -> None:
    assert not step_clock.has_events("cpu") and not step_clock.has_events("nosuch") and step_clock.has_events("cuda")


def test_a_real_run_tells_what_it_waits_for(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: dict[str, float] = {}
    collate, loss = Supervised.collate, Supervised.loss

    def collate_slowly(self: Method, rows: Any) -> Any:
        time.sleep(slow.get("data", 0.0))
        return collate(self, rows)  # type: ignore[arg-type]

    def compute_slowly(self: Method, *given: Any) -> Any:
        time.sleep(slow.get("forward", 0.0))
        return loss(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Supervised, "collate", collate_slowly)

    def rehearse(loop: TrainingLoop, *, fresh: bool) -> None:
        time.sleep(0.3)
        loop.clock.lap("rollouts")

    monkeypatch.setattr(Supervised, "loss", compute_slowly)
    monkeypatch.setattr(preflight, "rehearse", rehearse)
    for name in ("data", "forward"):
        slow.clear()
        slow[name] = 0.2
        changes = ("training.max_steps=3", "training.micro_batch=2", "training.rehearsal=true")
        run = train(Home(tmp_path), f"slow-{name}", prepared, *changes)
        published = [entry.values for entry in entries(run, Metrics) if "time/data" in entry.values]
        values = published[-1]
        assert len(published) == 1 and max(NAMES, key=lambda each: values[f"time/{each}"]) == name
        assert values[f"time/{name}"] > 0.5 and sum(values[f"time/{each}"] for each in NAMES) == pytest.approx(1.0)
        assert values["time/rollouts"] < 0.1  # the rehearsal is no step
        assert 0 <= values["train/padding"] < 1 and "train/mfu" not in values


# ── the share of the peak ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("label", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GB200", 2500),
        ("NVIDIA H200 NVL", 835),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA L40", 181),
        ("NVIDIA T400 4GB", None),
        ("Tesla T4", None),  # it has no bfloat16
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla K80", None),
        ("cpu", None),
    ],
)
def test_the_peaks_of_cards(label: str, peak: float | None) -> None:
    assert cards.find_peak(label, "bfloat16") == (peak * 1e12 if peak else None)
    assert cards.find_peak(label, "float32") is None


def test_an_old_card_has_a_peak_in_float16() -> None:
    assert (cards.find_peak("Tesla T4", "float16"), cards.find_peak("Tesla V100-SXM2-32GB", "float16")) == (
        65e12,
        125e12,
    )


def test_the_operations_of_a_token_are_six_per_trained_weight_and_four_per_frozen_one() -> None:
    def model(**settings: Any) -> Any:
        made = torch.nn.Module()
        made.embedding, made.layer = torch.nn.Embedding(100, 8), torch.nn.Linear(8, 8, bias=False)
        made.frozen = torch.nn.Linear(8, 16, bias=False).requires_grad_(False)
        made.config = SimpleNamespace(**settings)
        return made

    assert utilisation.count_operations(model()) == 6 * 64 + 4 * 128
    assert utilisation.count_operations(model(tie_word_embeddings=True)) == 6 * (64 + 800) + 4 * 128
    assert utilisation.count_operations(model(num_local_experts=8)) is None
    half = utilisation.Utilisation(model(), "sft", "NVIDIA H200", "bfloat16", 2)
    rate = 989e12 / (6 * 64 + 4 * 128)  # one card's worth of tokens for two cards
    assert half.describe(rate)["train/mfu"] == pytest.approx(0.5)
    assert utilisation.Utilisation(model(), "dpo", "NVIDIA H200", "bfloat16", 2).describe(rate) == {}
