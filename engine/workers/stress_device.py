"""The self-test of one device: `python -P -m engine.workers.stress_device SECONDS cpu|card [UUID]` prints one line of
JSON.

All results are known beforehand, bit for bit. The factors of the products are small whole numbers, so that every sum in
every order is exact in the dtype, and the CPU computes the expected product in 64-bit integers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch

from engine.hardware import host_memory
from engine.hardware.nvidia import Nvidia
from engine.protocol.messages import Device
from engine.protocol.process import signal_when_parent_ends

SHARES = {"products": 0.55, "pattern": 0.35, "bandwidth": 0.10}
"""How the time is divided among the parts of the test."""
AMPLITUDES = {torch.float32: 63, torch.bfloat16: 1, torch.float16: 1}
"""The largest factor of a product in this dtype: float32 sums to below 2²⁴; TF32 and 16 bits hold each factor, and
sums of ±1 stay far below 2⁸."""
INNER = 1024
"""Terms of each sum."""
TILE = 128
"""Rows and columns of the part whose product is computed on the CPU; the matrices consist of copies of it."""
PATTERNS = (0, -1, 0x5555555555555555, -0x5555555555555556, None)
"""64-bit words that memory must keep; None for a different one in each place."""
CHUNK = 1 << 28
"""Bytes that are filled at once."""
HOST_SHARE, CARD_SHARE = 0.25, 0.9
"""The share of the free memory that is tested: of the host's, and of a card's own."""
MOST_ON_HOST = 2 << 30
SAMPLE_SECONDS, JOIN_SECONDS = 0.5, 5.0


class Load:
    """Samples heat and clocks in a thread while the device computes."""

    def __init__(self, device: torch.device, uuid: str) -> None:
        self._cpu = device.type == "cpu"
        self._uuid, self._stop, self._nvml = uuid, threading.Event(), Nvidia()
        self.temperature: float | None = None
        self.clock: float | None = None
        self.clock_max: float | None = None
        self.throttled: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)  # NVML may hang

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            card = self.read_card()
            if self._cpu:
                self._add(*_read_cpu_figures())
            elif card:
                self._add(*_read_card_figures(card))
                self.throttled |= set(card.health.throttled or ()) if card.health else set()

    def read_card(self) -> Device | None:
        """One sample of the card; None for the CPU, and for a card that NVML does not know."""
        return self._nvml.sample_named(self._uuid) if self._uuid else None

    def _add(self, temperature: float | None, clock: float | None, most: float | None) -> None:
        if temperature is not None:
            self.temperature = max(temperature, self.temperature or 0.0)
        if clock:
            self.clock, self.clock_max = min(clock, self.clock or clock), most


def _read_card_figures(card: Device) -> tuple[float | None, float | None, float | None]:
    health = card.health
    return card.temperature, health.clock if health else None, health.clock_max if health else None


def _read_cpu_figures() -> tuple[float | None, float | None, float | None]:
    groups = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    heat = max((each.current for group in groups.values() for each in group if each.current), default=None)
    frequency = psutil.cpu_freq()
    return heat, frequency.current if frequency else None, (frequency.max or None) if frequency else None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product under test."""
    return left @ right


def read_back(memory: torch.Tensor) -> torch.Tensor:
    """The memory under test as it is read after it was written."""
    return memory


def make_factors(
    device: torch.device, dtype: torch.dtype, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two factors of `size` rows and columns and their exact product, all on the device."""
    most = AMPLITUDES[dtype]
    random = torch.Generator().manual_seed(most)
    left = torch.randint(-most, most + 1, (TILE, INNER), generator=random)
    right = torch.randint(-most, most + 1, (INNER, TILE), generator=random)
    product, times = left @ right, max(1, size // TILE)
    return (
        left.to(dtype).repeat(times, 1).to(device),
        right.to(dtype).repeat(1, times).to(device),
        product.to(dtype).repeat(times, times).to(device),
    )


def _has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device itself computes products in this dtype; older ones emulate some, or have none."""
    if device.type == "cpu":
        return dtype != torch.float16
    return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)


def try_products(device: torch.device, seconds: float, size: int) -> dict[str, Any]:
    """Multiply until the time is over. `flops` and the speeds are floating-point operations a second."""
    dtypes = [each for each in AMPLITUDES if _has_kernels(device, each)]
    factors = {dtype: make_factors(device, dtype, size) for dtype in dtypes}
    wrong = done = 0
    busy = 0.0
    speeds: list[float] = []
    cost = {dtype: 2.0 * left.shape[0] * right.shape[1] * INNER for dtype, (left, right, _) in factors.items()}
    for left, right, _ in factors.values():  # the first products choose their kernels
        multiply(left, right)
    synchronize(device)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or not done:
        rounds = 0.0
        for left, right, expected in factors.values():
            start = time.perf_counter()
            found = multiply(left, right)
            synchronize(device)
            rounds += time.perf_counter() - start
            done += 1
            wrong += not torch.equal(found, expected)
        busy += rounds
        speeds.append(sum(cost.values()) / rounds)
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    part = max(1, len(speeds) // 5)
    return {
        "products": done,
        "wrong": wrong,
        "dtypes": names,
        "flops": sum(cost.values()) * len(speeds) / busy,
        "first_speed": sorted(speeds[:part])[part // 2],
        "last_speed": sorted(speeds[-part:])[part // 2],
    }


def measure_free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory.read_available()


def _uses_host_memory(device: torch.device) -> bool:
    return device.type == "cpu" or bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))


def _allocate(device: torch.device, wanted: int) -> Iterator[torch.Tensor]:
    """Blocks of up to `wanted` bytes together; fewer where there are not so many."""
    while wanted > 0:
        try:
            yield torch.empty(min(CHUNK, wanted) // 8, dtype=torch.int64, device=device)
        except (torch.OutOfMemoryError, RuntimeError):
            return
        wanted -= CHUNK


def try_memory(device: torch.device, seconds: float, most: int | None = None) -> dict[str, Any]:
    """Fill free memory with patterns and read it back, until all are done or the time is over. All blocks are filled
    before the first is read, so that no cache answers."""
    free = measure_free(device)
    host = _uses_host_memory(device)
    wanted = int(free * (HOST_SHARE if host else CARD_SHARE))
    wanted = min(wanted, most or (MOST_ON_HOST if host else wanted))
    blocks = list(_allocate(device, wanted))
    flipped = patterns = tested = 0
    began = time.perf_counter()
    for pattern in PATTERNS:
        filled = []
        for number, block in enumerate(blocks):
            if patterns and time.perf_counter() - began > seconds:
                break
            _fill(block, pattern, number)
            filled.append(block)
            if not patterns and time.perf_counter() - began > seconds / 2:
                break  # the first pattern is read back whatever it takes
        if len(filled) < len(blocks) and patterns:
            break
        for number, block in enumerate(filled):
            flipped += _count_changed(read_back(block), pattern, number)
        patterns, tested = patterns + 1, max(tested, sum(block.numel() * 8 for block in filled))
    return {"free": free, "tested": tested, "patterns": patterns, "flipped": flipped}


def _fill(block: torch.Tensor, pattern: int | None, number: int) -> None:
    if pattern is None:
        torch.arange(number, number + block.numel(), out=block)
    else:
        block.fill_(pattern)


def _count_changed(block: torch.Tensor, pattern: int | None, number: int) -> int:
    """Words that are not as they were written. Compared in parts: the comparison takes memory, too."""
    changed = 0
    for start in range(0, block.numel(), 1 << 22):
        part = block[start : start + (1 << 22)]
        first = number + start
        right: Any = pattern if pattern is not None else torch.arange(first, first + part.numel(), device=block.device)
        changed += int((part != right).sum())
    return changed


def _measure(device: torch.device, seconds: float, copy: Callable[[], object]) -> float:
    """Calls a second."""
    copy()
    synchronize(device)
    began, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds or not done:
        copy()
        synchronize(device)
        done += 1
    return done / taken


def try_bandwidth(device: torch.device, seconds: float) -> dict[str, Any]:
    """Bytes a second that are read and written by copies on the device, and from the host to it."""
    size = 1 << (28 if device.type != "cpu" else 26)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found: dict[str, Any] = {"bandwidth": 2 * size * _measure(device, seconds / 2, lambda: target.copy_(source))}
    if device.type == "cuda":
        pinned = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        found["link"] = size * _measure(device, seconds / 2, lambda: target.copy_(pinned, non_blocking=True))
    return found


NO_MEMORY = {"free": 0, "tested": 0, "patterns": 0, "flipped": 0}


def run(device: torch.device, seconds: float, uuid: str = "") -> dict[str, Any]:
    size = 1024 if device.type == "cpu" else 8192
    with Load(device, uuid) as load:
        found = try_products(device, seconds * SHARES["products"], size)
        # Somebody may have begun to use the card meanwhile, and needs its memory. One process is this one.
        card = load.read_card()
        shared = card is not None and len(card.processes or ()) > 1
        found |= NO_MEMORY if shared else try_memory(device, seconds * SHARES["pattern"])
        if device.type == "cuda":
            torch.cuda.empty_cache()
        found |= try_bandwidth(device, seconds * SHARES["bandwidth"])
    heat = {"temperature": load.temperature, "clock": load.clock, "clock_max": load.clock_max}
    return found | heat | {"throttled": sorted(load.throttled)}


def examine(seconds: float, place: str, uuid: str = "") -> dict[str, Any]:
    """What the test of the CPU, or of the one card that the environment leaves visible, found; `untested` and `mend`
    where there was none."""
    if place == "cpu":
        return run(torch.device("cpu"), seconds)
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # another device must not be tested in its place
        reason = str(error).splitlines()[0] if str(error) else "torch cannot use it"
        return {"untested": reason, "mend": "cockpit doctor torch driver device"}
    try:
        return run(torch.device("cuda"), seconds, uuid)
    except torch.OutOfMemoryError:
        return {"untested": "too little of its memory is free", "mend": "test it again when nothing uses it"}


if __name__ == "__main__":
    signal_when_parent_ends(signal.SIGKILL)
    os.nice(10)  # the engine and its runs come first
    print(json.dumps(examine(float(sys.argv[1]), *sys.argv[2:])), flush=True)
