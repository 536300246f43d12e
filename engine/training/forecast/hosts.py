"""What a run is forecast for: devices of this host, or of a named size."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from engine.config.forecasts import Place, find_place, format_size
from engine.config.profile import Profile
from engine.hardware import host_memory
from engine.hardware.listing import list_visible
from engine.protocol.messages import Problem, ProblemError

_UNITS = {"": 10**9, "g": 10**9, "gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}
_SIZE = re.compile(r"\s*(?:(\d+)\s*x\s*)?(\d+(?:\.\d+)?)\s*(gb|gib|mb|mib|g|)\s*", re.IGNORECASE)
PEAKS = {
    "b200": 2250e12,
    "h200": 989e12,
    "h100": 989e12,
    "a100": 312e12,
    "l40s": 362e12,
    "a40": 150e12,
    "rtx 4090": 165e12,
    "rtx 3090": 71e12,
    "l4": 121e12,
    "t4": 65e12,
    "v100": 125e12,
}
"""Part of a card's name -> floating-point operations a second in 16 bits, dense, by its maker's data sheet."""
ACHIEVED = 0.35
"""Share of that speed that training reaches, until it was measured."""


@dataclass(frozen=True)
class Host:
    """`cards` devices of `kind`, which all have `card_bytes`; None where that is unknown. `host_bytes` is the memory
    that is free on the host, None for a host that is not this one."""

    kind: str
    label: str
    cards: int
    card_bytes: int | None
    host_bytes: int | None

    @property
    def place(self) -> Place:
        return Place(self.kind, self.label, self.card_bytes)

    @property
    def is_here(self) -> bool:
        """Whether the devices are those of this host, not of a named size."""
        return self.host_bytes is not None

    @property
    def listed_flops(self) -> float | None:
        """What training on such a card reaches by its data sheet."""
        name = self.label.lower()
        found = next((peak for part, peak in PEAKS.items() if part in name), None)
        return None if found is None else found * ACHIEVED


def find(profile: Profile, card: str | None, cards: int | None, environment: Mapping[str, str] = os.environ) -> Host:
    """The host that a run of this profile is for: `cards` devices of the size `card`, else those of this host. Raises
    ProblemError for a size that is none."""
    memory = host_memory.read_available() + psutil.swap_memory().free
    if card is not None:
        number, size = parse_size(card)
        if number > 1:
            cards = cards or number
        return Host("cuda", f"a card of {format_size(size)}", cards or count(profile, 1), size, None)
    devices = list_visible(environment)
    place = find_place(devices)
    ranks = cards or count(profile, len(devices))
    return Host(place.kind, place.label, ranks, place.card_bytes, memory)


def count(profile: Profile, devices: int) -> int:
    """The number of ranks that a profile asks for."""
    processes = profile.launch.processes
    return processes if isinstance(processes, int) else max(1, devices)


def parse_size(text: str) -> tuple[int, int]:
    """`8x80GB` as number and bytes; `24GB` is one. Raises ProblemError."""
    found = _SIZE.fullmatch(text)
    if found is None or float(found[2]) <= 0:
        raise ProblemError(
            Problem(
                code="forecast.card_size",
                title=f"{text!r} is not the size of a card",
                hint="write the memory of a card, such as 24GB, or number and memory, such as 8x80GB",
            )
        )
    return int(found[1] or 1), int(float(found[2]) * _UNITS[found[3].lower()])
