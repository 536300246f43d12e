"""Which card is ill: from NVML's figures, its events and the kernel's log; what a card does not report is left out."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pynvml
import pytest

from engine.config import card_health
from engine.hardware import health
from engine.hardware.nvidia import Nvidia
from engine.protocol.messages import Device, Health
from engine.training.card_watch import CardWatch
from engine.training.ranks import Ranks
from engine.workers import device_checks
from tests import fake_nvml
from tests.fake_nvml import Cards, make_card

HEALTHY = {
    "address": "00000000:3B:00.0", "clock": 1980, "clock_max": 1980, "reasons": 0, "ecc": [0, 0], "retired": [0, 0],
    "pending": 0, "rows": [0, 0, 0, 0], "link": [16, 16, 5, 5], "temperature": 60, "utilisation": 90,
}  # fmt: skip
ILL = {
    "throttled by heat": {"reasons": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown},
    "throttled by its power supply": {"reasons": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown},
    "3 uncorrected memory errors": {"ecc": [5, 3]},
    "broken memory waits to be replaced": {"pending": 1},
    "broken memory could not be replaced": {"rows": [0, 1, 0, 1]},
    "PCIe ×4 of ×16": {"link": [4, 16, 5, 5]},
    "PCIe generation 1 of 5": {"link": [16, 16, 1, 5]},
}
WELL = [
    {},
    {"reasons": pynvml.nvmlClocksThrottleReasonSwPowerCap},  # usual under full load
    {"reasons": pynvml.nvmlClocksThrottleReasonGpuIdle, "utilisation": 0, "link": [16, 16, 1, 5]},
    {"ecc": [120, 0]},
    {"rows": [1, 0, 0, 0]},
]


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    return fake_nvml.install(tmp_path, monkeypatch)


def sample(cards: Cards, *given: dict[str, object], nvml: Nvidia | None = None, **more: object) -> list[Device]:
    cards.write(*(make_card(at, **HEALTHY | each) for at, each in enumerate(given)), **more)
    return (nvml or Nvidia()).sample_devices()


@pytest.mark.parametrize("words", ILL)
def test_each_fault_is_named(words: str, cards: Cards) -> None:
    (card,) = sample(cards, ILL[words])
    assert [fault.words for fault in card_health.list_faults(card.health, card.utilisation)] == [words]
    assert card_health.describe(card).endswith("60 °C") and card_health.encode(card)


@pytest.mark.parametrize("given", WELL)
def test_a_healthy_card_has_none(given: dict[str, object], cards: Cards) -> None:
    (card,) = sample(cards, given)
    assert not list(card_health.list_faults(card.health, card.utilisation)) and not card_health.encode(card)
    assert "MHz" in card_health.describe_figures(card.health)


def test_what_a_card_does_not_report_costs_no_other_figure(cards: Cards) -> None:
    """Any subset of the figures may be missing, or be refused with any error."""
    keys = [key for key in HEALTHY if key not in ("temperature", "utilisation")]
    rng = random.Random(0)
    functions = [name for name in vars(fake_nvml.load()) if name.startswith("nvmlDeviceGet")]
    for _ in range(60):
        kept = {key: HEALTHY[key] for key in keys if rng.random() < 0.6}
        refuse = {name: rng.choice((3, 4, 12, 15, 999)) for name in functions if rng.random() < 0.2}
        cards.write(
            make_card(0, **kept, refuse={**refuse, "nvmlDeviceGetName": 0}),
            make_card(1, **HEALTHY | {"address": "0:af:0.0"}),
        )
        first, second = Nvidia(watch=True).sample_devices()
        assert first.name and second.health == Health(
            clock=1980, clock_max=1980, throttled=[], ecc_corrected=0, ecc_uncorrected=0, retired_pages=0,
            remapped_rows=0, reset_pending=False, remap_failed=False, link_width=16, link_width_max=16,
            link_generation=5, link_generation_max=5,
        )  # fmt: skip
        assert not list(card_health.list_faults(first.health))
        if "clock" in kept and "nvmlDeviceGetClockInfo" not in refuse:
            assert first.health and first.health.clock == 1980
    cards.write(make_card(0))
    assert Nvidia().sample_devices()[0].health is None


def test_a_link_that_was_slow_while_the_card_was_idle_is_no_fault(cards: Cards) -> None:
    """Figures that are read rarely must not be judged by the load of now."""
    nvml = Nvidia()
    (idle,) = sample(cards, {"link": [16, 16, 1, 5], "utilisation": 0}, nvml=nvml)
    (busy,) = sample(cards, {"link": [16, 16, 5, 5], "utilisation": 99}, nvml=nvml)
    assert card_health.encode(idle) == card_health.encode(busy) == 0
    assert "up to 5.0" in card_health.describe_figures(idle.health)


def test_instances_have_the_health_of_their_card(cards: Cards) -> None:
    parts = [make_card(at, uuid=f"MIG-{at}", address="", refuse={"nvmlDeviceGetClockInfo": 3}) for at in range(2)]
    nvml = Nvidia(watch=True)
    devices = sample(cards, {"instances": parts, "ecc": [0, 2]}, nvml=nvml)
    assert [(each.address, each.health and each.health.ecc_uncorrected) for each in devices] == [("0000:3b:00", 2)] * 2
    (found,) = device_checks.check_health(devices)
    assert found.ok is False and found.detail.startswith("GPU 0:")
    named = nvml.sample_named("MIG-1")
    assert named and named.uuid == "MIG-1" and card_health.encode(named) == card_health.UNCORRECTED


def test_xid_errors_are_told_of_the_card_that_had_them(cards: Cards) -> None:
    nvml = Nvidia(watch=True)
    two = ({}, {"address": "00000000:AF:00.0"})
    assert [each.health and each.health.xids for each in sample(cards, *two, nvml=nvml)] == [[], []]
    xids = [[1, 79], [1, 31], [0, 13]]
    first, second = sample(cards, *two, nvml=nvml, xids=xids)
    assert first.health and second.health and (first.health.xids, second.health.xids) == ([13], [79, 31])
    assert [fault.broken for fault in card_health.list_faults(second.health)] == [True, False]
    assert (card_health.encode(first), card_health.encode(second)) == (0, card_health.XID)


def test_the_kernels_log_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cards: Cards) -> None:
    log = """[  1.0] NVRM: loading NVIDIA UNIX x86_64 Kernel Module
    [80.2] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
    [81.2] NVRM: Xid (PCI:0000:af:00): 31, pid=4, name=python, Ch 00000008"""
    command = tmp_path / "dmesg"
    (tmp_path / "log").write_text(log)
    command.write_text(f"#!/bin/sh\ncat {tmp_path}/log\n")
    command.chmod(0o755)
    monkeypatch.setattr(health, "LOG_COMMANDS", (("/nonexistent/dmesg",), (str(command),)))
    assert health.read_log() == [("0000:3b:00", 79), ("0000:af:00", 31)]
    found = list(device_checks.check_health(sample(cards, {}, {"address": "00000000:AF:00.0"}, {"address": "0:1:0.0"})))
    assert [(each.ok, each.code) for each in found] == [(False, "device.unreliable"), (None, ""), (True, "")]
    assert "Xid 79: the card fell off the bus" in found[0].detail and "1980 of 1980 MHz" in found[2].detail
    monkeypatch.setattr(health, "LOG_COMMANDS", (("/nonexistent/dmesg",),))
    assert health.read_log() is None
    (tmp_path / "log").write_text("-- No entries --\n")  # journalctl, to those who may not read the kernel's log
    monkeypatch.setattr(health, "LOG_COMMANDS", ((str(command),),))
    assert health.read_log() is None
    (unread,) = device_checks.check_health(sample(cards, {}))
    assert unread.ok and "log cannot be read" in unread.detail


def test_the_ranks_cards_are_in_the_metrics(cards: Cards) -> None:
    sample(cards, {"temperature": 84, "reasons": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown})
    card = Nvidia().sample_named(make_card(0)["uuid"])
    assert card and card.temperature == 84 and Nvidia().sample_named("GPU-unknown") is None
    device = type("Device", (), {"kind": "cpu", "name": "cpu"})
    watches = [CardWatch(device, Ranks(rank=rank, world=3)) for rank in range(3)]
    for watch, latest in zip(watches, ((61.0, 0.0), (60.0, 4.0), (84.0, float(card_health.encode(card)))), strict=True):
        watch._has_cards, watch._latest = True, latest
    summed = [sum(each) for each in zip(*(watch.take() for watch in watches), strict=True)]
    values = watches[0].describe(summed, 2.0)
    assert values == {
        "card/temperature": 84.0, "card/faults": 5.0, "card/ill": 2.0, "card/ill_rank": 1.0,
        "time/slowest_temperature": 84.0, "time/slowest_faults": 1.0,
    }  # fmt: skip
    assert CardWatch(device, Ranks()).take() == [] and CardWatch(device, Ranks()).describe([], None) == {}


def test_every_combination_of_flags_has_words() -> None:
    flags = (card_health.HEAT, card_health.UNCORRECTED, card_health.RESET, card_health.LINK, card_health.XID)
    said = {
        card_health.describe_flags(sum(chosen)) for size in range(6) for chosen in itertools.combinations(flags, size)
    }
    assert len(said) == 2 ** len(flags)
