"""What a run is forecast for: devices of this host, or of a named size."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from engine.config.forecasts import Place, find_place, format_size
from engine.config.profile import Profile
from engine.hardware import cards as card_types
from engine.hardware import host_memory
from engine.hardware.listing import list_visible
from engine.protocol.messages import Problem, ProblemError

_UNITS = {"": 10**9, "g": 10**9, "gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gb|gib|mb|mib|g|)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\s*(\d+)\s*x\s*(.+)", re.IGNORECASE)
_NAME_AND_SIZE = re.compile(r"(.+?)[\s-]*(?<!\d)(\d+\s*gi?b)", re.IGNORECASE)
ACHIEVED = 0.35
"""Share of a card's listed speed that training reaches, until it was measured."""


@dataclass(frozen=True)
class Host:
    """`cards` devices of `kind`, called `label`, which all have `card_bytes`; None where that is unknown. `host_bytes`
    is the memory that is free on the host, None for a host that is not this one."""

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

    def list_flops(self, dtype: str) -> float | None:
        """What training in `dtype` reaches on such a card by its data sheet; None where that is not known."""
        found = card_types.find_peak(self.label, dtype)
        return None if found is None else found * ACHIEVED


def find(profile: Profile, card: str | None, cards: int | None, environment: Mapping[str, str] = os.environ) -> Host:
    """The host that a run of this profile is for: `cards` devices of the size or type `card`, else those of this host.
    Raises ProblemError for a card that is neither."""
    memory = host_memory.read_available() + psutil.swap_memory().free
    if card is not None:
        number, size, name = parse_card(card)
        if number > 1:
            cards = cards or number
        return Host("cuda", name or f"a card of {format_size(size)}", cards or count(profile, 1), size, None)
    devices = list_visible(environment)
    place = find_place(devices)
    ranks = cards or count(profile, len(devices))
    return Host(place.kind, place.label, ranks, place.card_bytes, memory)


def count(profile: Profile, devices: int) -> int:
    """The number of ranks that a profile asks for."""
    processes = profile.launch.processes
    return processes if isinstance(processes, int) else max(1, devices)


def parse_card(text: str) -> tuple[int, int, str]:
    """`8x80GB` as number, bytes and no name; `24GB` is one. `RTX 4090`, `2xA100 80GB` and such as number, bytes and the
    name of the type, which has the smallest size that there is unless it says another one. Raises ProblemError."""
    several = _NUMBER.fullmatch(text)
    number, rest = (int(several[1]), several[2]) if several else (1, text.strip())
    size = _SIZE.fullmatch(rest)
    named = card_types.find_named(rest) if number else None
    if named is None and size is None and (both := _NAME_AND_SIZE.fullmatch(rest)):
        named, size = card_types.find_named(both[1]), _SIZE.fullmatch(both[2])
        if named is not None and size is not None and number:
            return number, _count_bytes(size), named.name
        size = None
    if named is not None:
        return number, named.memory[0] * 10**9, named.name
    if size is None or float(size[1]) <= 0 or number < 1:
        near = card_types.suggest(rest)
        meant = ", ".join(near)
        raise ProblemError(
            Problem(
                code="forecast.card_size",
                title=f"{text!r} is neither the size of a card nor a type that is known",
                hint=f"known types with such a name: {meant}; or write the memory of a card, such as 24GB or 8x80GB"
                if near
                else "write a type such as H100, or the memory of a card, such as 24GB or 8x80GB",
            )
        )
    return number, _count_bytes(size), ""


def _count_bytes(size: re.Match[str]) -> int:
    return int(float(size[1]) * _UNITS[size[2].lower()])
