"""`cockpit doctor --stress SECONDS`: each card is tested by a process of its own, all at the same time.

A card that crashes its process, or never answers, is a result. Without a card the CPU is tested in the same way. A card
that anybody uses, or that a live run of this home has, is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.hardware import masks
from engine.hardware.listing import Listing
from engine.protocol import states
from engine.protocol.client import Client, find_engine
from engine.protocol.home import Home
from engine.protocol.messages import Device, ProblemError
from engine.supervisor.devices import UNUSED_BYTES, UNUSED_SHARE
from engine.workers.device_checks import Check
from engine.workers.probes import last_line

PATIENCE = 300.0
"""Seconds that a test may take beyond what was asked for: importing torch, and the first kernels."""
ENDING = 5.0
"""Seconds to wait for the end of a process that was killed: one that hangs in the driver does not end."""
SLOWER = 0.8
"""A card is marked that reaches less than this share of the speed of the best card of its name."""
SLOWED = 0.8
"""A card is marked whose products become slower than this share of their first speed."""
BUSY = 10.0
"""Percent of utilisation from which somebody uses a card, even if the driver lists nobody."""
SLOTS = ("products", "pattern", "bandwidth", "load")
"""The names of a device's checks: wrong results, wrong bits of memory, speed of copies, and heat and clocks."""


@dataclass
class Test:
    """The test of one device, in a process of its own; `device` is None for the CPU."""

    label: str
    device: Device | None
    process: subprocess.Popen[str]


def check_devices(seconds: float, home: Home) -> Iterator[Check]:
    """Test every device that this process may use and nobody else uses."""
    cards = Listing().sample_devices()
    visible = [card for card in cards if card.index in masks.find_visible(cards, os.environ)]
    given = _list_given(home) if visible else {}
    idle = []
    for card in visible:
        if who := find_user(card, given):
            detail = f"GPU {card.index}: not tested, {who}"
            yield Check("load", None, detail, "test it again when nothing uses it")
        else:
            idle.append(card)
    if visible and not idle:
        return
    tests: list[Test] = []
    try:
        tests += [_start(seconds, card, cards) for card in idle] or [_start(seconds, None, cards)]
        deadline = time.monotonic() + seconds + PATIENCE
        results = [(test, _read(test, deadline)) for test in tests]
    finally:
        for test in tests:
            test.process.kill()
        for test in tests:
            with contextlib.suppress(subprocess.TimeoutExpired):
                test.process.wait(ENDING)
    yield from describe([(test.label, test.device.name if test.device else "", found) for test, found in results])


def find_user(card: Device, given: dict[int, str]) -> str:
    """Who uses a card, or why that is not known; empty where nobody does. `given` are the cards that live runs have."""
    if run := given.get(card.index):
        return f"the run {run} has it"
    if card.processes:
        return f"it is used by {', '.join(dict.fromkeys(each.name or str(each.pid) for each in card.processes))}"
    if (card.utilisation or 0.0) >= BUSY:
        return f"it is busy ({card.utilisation:.0f} %)"
    used, total = card.memory_used, card.memory_total
    if used is None or not total:
        return "" if card.processes is not None else "whether somebody uses it cannot be seen here"
    # Processes of other containers may be missing in the driver's list; their memory is not.
    return f"{used / 1e9:.1f} GB of its memory are used" if used > max(UNUSED_SHARE * total, UNUSED_BYTES) else ""


def _list_given(home: Home) -> dict[int, str]:
    """The devices that the engine of this home has given to live runs, which may be about to use them."""
    if find_engine(home) is None:
        return {}
    try:
        with Client(home, start=False) as client:
            runs = client.request("runs").runs
    except ProblemError:
        return {}
    return {index: run.id for run in runs if run.state in states.LIVE for index in run.devices}


def _start(seconds: float, card: Device | None, cards: Sequence[Device]) -> Test:
    chosen = None if card is None else [card.index]
    environment = masks.restrict(os.environ, os.environ, cards, chosen)
    place = "cpu" if card is None else "card"
    command = [sys.executable, "-P", "-m", "engine.workers.stress_device", str(seconds), place]
    if card is not None and card.uuid:
        command.append(card.uuid)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Test("CPU" if card is None else f"GPU {card.index}", card, process)


def _read(test: Test, deadline: float) -> dict[str, Any]:
    """What the test found; `error` if it did not come to its end."""
    try:
        output, errors = test.process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        test.process.kill()
        return {"error": f"no answer until {PATIENCE:.0f} s after the test's end"}
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
        if "untested" in found:
            yield Check("load", None, f"{label}: not tested, {found['untested']}", found["mend"])
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
    if not found["tested"]:
        detail = f"{label}: memory not tested, none is free or another program has begun to use the card"
        return Check("pattern", None, detail, "test it again when nothing uses it")
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
    slows = [each for each in found["throttled"] if each != "power_cap"]
    if slows:
        parts.append(f"throttled: {', '.join(slows)}")
    elif found["throttled"]:  # as is usual under full load
        parts.append("at its power limit")
    slowed = found["last_speed"] / (found["first_speed"] or 1.0)
    parts.append(f"speed at the end {slowed:.0%} of that at the beginning".replace("%", " %"))
    detail = f"{label}: {', '.join(parts)}"
    if slows or slowed < SLOWED:
        return Check("load", None, detail, "look at its cooling and power, and at what else runs on this host")
    return Check("load", True, detail)
