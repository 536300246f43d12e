"""`cockpit doctor --stress SECONDS`: each card is tested by a process of its own, all at the same time.

A card that crashes its process, or never answers, is a result. Without a card the CPU is tested in the same way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.hardware import masks
from engine.hardware.listing import Listing
from engine.protocol.messages import Device
from engine.workers.device_checks import Check
from engine.workers.probes import last_line

PATIENCE = 300.0
"""Seconds that a test may take beyond what was asked for: importing torch, and the first kernels."""
SLOWER = 0.8
"""A card is marked that reaches less than this share of the speed of the best card of its name."""
SLOWED = 0.8
"""A card is marked whose products become slower than this share of their first speed."""
SLOTS = ("products", "pattern", "bandwidth", "load")
"""The names of a device's checks: wrong results, wrong bits of memory, speed of copies, and heat and clocks."""


@dataclass
class Test:
    """The test of one device, in a process of its own; `device` is None for the CPU."""

    label: str
    device: Device | None
    process: subprocess.Popen[str]


def check_devices(seconds: float) -> Iterator[Check]:
    """Test every device that this process may use and nobody else uses."""
    cards = Listing().sample_devices()
    visible = [card for card in cards if card.index in masks.find_visible(cards)]
    used = [card for card in visible if card.processes]
    for card in used:
        who = ", ".join(dict.fromkeys(each.name or str(each.pid) for each in card.processes or ()))
        yield Check("load", None, f"GPU {card.index}: not tested, it is used by {who}", "test it again when it is idle")
    idle = [card for card in visible if card not in used]
    if visible and not idle:
        return
    tests = [_start(seconds, card, cards) for card in idle] or [_start(seconds, None, cards)]
    try:
        results = [(test, _read(test, seconds)) for test in tests]
    finally:
        for test in tests:
            test.process.kill()
            test.process.wait()
    yield from describe([(test.label, test.device.name if test.device else "", found) for test, found in results])


def _start(seconds: float, card: Device | None, cards: Sequence[Device]) -> Test:
    chosen = None if card is None else [card.index]
    environment = masks.restrict(os.environ, os.environ, cards, chosen)
    command = [sys.executable, "-P", "-m", "engine.workers.stress_device", str(seconds)]
    if card is not None and card.uuid:
        command.append(card.uuid)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Test("CPU" if card is None else f"GPU {card.index}", card, process)


def _read(test: Test, seconds: float) -> dict[str, Any]:
    """What the test found; `error` if it did not come to its end."""
    try:
        output, errors = test.process.communicate(timeout=seconds + PATIENCE)
    except subprocess.TimeoutExpired:
        test.process.kill()
        return {"error": f"no answer within {seconds + PATIENCE:.0f} s"}
    if test.process.returncode < 0:
        return {"error": f"the process was ended by signal {-test.process.returncode}"}
    try:
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": last_line(errors)}
    return found


def describe(results: Sequence[tuple[str, str, dict[str, Any]]]) -> Iterator[Check]:
    """The checks of all devices: of each its label, the name of its model, and what its test found."""
    best: dict[tuple[str, str], float] = {}
    for _, model, found in results:
        for key in ("flops", "bandwidth"):
            best[model, key] = max(best.get((model, key), 0.0), found.get(key) or 0.0)
    for label, model, found in results:
        if "error" in found:
            yield Check("load", False, f"{label}: {found['error']}", _REPLACE, "device.unreliable")
            continue
        yield _describe_products(label, found, found["flops"] / (best[model, "flops"] or 1.0))
        yield _describe_pattern(label, found)
        yield _describe_bandwidth(label, found, found["bandwidth"] / (best[model, "bandwidth"] or 1.0))
        yield _describe_load(label, found)


_REPLACE = "take this device out of your runs (launch.devices), and have it looked at"


def _describe_products(label: str, found: dict[str, Any], share: float) -> Check:
    wrong, done = found["wrong"], found["products"]
    words = f"{label}: {done:,} matrix products ({', '.join(found['dtypes'])}), {found['flops'] / 1e9:,.0f} GFLOP/s"
    if wrong:
        return Check("products", False, f"{words}; {wrong:,} gave WRONG results", _REPLACE, "device.unreliable")
    if share < SLOWER:
        return Check(
            "products", None, f"{words}, {share:.0%} of the best card of its kind", "look at its clock and heat"
        )
    return Check("products", True, f"{words}, all right")


def _describe_pattern(label: str, found: dict[str, Any]) -> Check:
    tested, free = found["tested"] / 1e9, found["free"] / 1e9
    words = f"{label}: {tested:.1f} of {free:.1f} GB of free memory, {found['patterns']} patterns"
    if found["flipped"]:
        detail = f"{words}; {found['flipped']:,} words came back CHANGED"
        return Check("pattern", False, detail, _REPLACE, "device.unreliable")
    return Check("pattern", True, f"{words}, all kept")


def _describe_bandwidth(label: str, found: dict[str, Any], share: float) -> Check:
    words = f"{label}: copies {found['bandwidth'] / 1e9:,.1f} GB/s"
    if found.get("link"):
        words += f", from the host {found['link'] / 1e9:,.1f} GB/s"
    if share < SLOWER:
        return Check(
            "bandwidth", None, f"{words}, {share:.0%} of the best card of its kind", "look at `cockpit doctor health`"
        )
    return Check("bandwidth", True, words)


def _describe_load(label: str, found: dict[str, Any]) -> Check:
    parts = []
    if found.get("temperature") is not None:
        parts.append(f"up to {found['temperature']:.0f} °C")
    if found.get("clock"):
        most = f" of {found['clock_max']:.0f}" if found.get("clock_max") else ""
        parts.append(f"clock down to {found['clock']:.0f}{most} MHz")
    if found["throttled"]:
        parts.append(f"throttled: {', '.join(found['throttled'])}")
    slowed = found["last_speed"] / (found["first_speed"] or 1.0)
    parts.append(f"speed at the end {slowed:.0%} of that at the beginning".replace("%", " %"))
    detail = f"{label}: {', '.join(parts)}"
    if found["throttled"] or slowed < SLOWED:
        return Check("load", None, detail, "look at its cooling and power, and at what else runs on this host")
    return Check("load", True, detail)
