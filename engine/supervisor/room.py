"""Checks at submission whether there is room for a run: on the disk, and in memory as far as there is a forecast."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import psutil

from engine.config import forecasts
from engine.config.profile import Profile
from engine.protocol.home import Home
from engine.protocol.journal import Warn
from engine.protocol.messages import Device, Problem, ProblemError


def check_disk(profile: Profile, home: Home) -> None:
    """Raises ProblemError when the disk is so full that the run would pause at its first step."""
    free, least = shutil.disk_usage(home.root).free / 1e9, profile.limits.disk_free_gb
    if free < least:
        cause = f"{free:.1f} GB are free in {home.root}, and limits.disk_free_gb is {least:g}"
        raise ProblemError(
            Problem(
                code="disk.low",
                title="Too little disk",
                cause=cause,
                hint="free some disk space, or lower limits.disk_free_gb",
            )
        )


def check_memory(profile: Profile, home: Home, cards: Sequence[Device], *, idle: bool) -> str:
    """A warning where the run hardly fits by its forecast, else "". `cards` are those that it may use, and `idle` says
    whether no other run takes memory now. Without a forecast nothing is checked: the prepare stage makes one where
    there are accelerators. Raises ProblemError for a run that cannot fit."""
    found = find_forecast(profile, home, cards)
    if found is None:
        return ""
    sizes = [card.memory_total for card in cards if card.memory_total is not None]
    card = max(sizes, default=None)  # never refused because of a card that it may not get
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    host = memory.available + swap.free if idle else memory.total + swap.total
    verdict = forecasts.judge_all(found, card, host)
    if verdict == "too_large":
        raise ProblemError(forecasts.explain_refusal(found, card, host))
    return f"the run hardly fits: {forecasts.describe_lack(found, card, host)}" if verdict == "near" else ""


def find_forecast(profile: Profile, home: Home, cards: Sequence[Device]) -> dict[str, Any] | None:
    """The kept forecast of this profile on these cards, on the CPU if there are none."""
    kind = "cpu" if not cards else "cuda" if cards[0].kind in ("nvidia", "amd") else cards[0].kind
    processes = profile.launch.processes
    count = processes if isinstance(processes, int) else max(1, len(cards))
    return forecasts.read(home, forecasts.compute_key(profile, kind, count))


def warn_near(attempt: int, message: str) -> Warn:
    """The warning of a run that hardly fits."""
    hint = "`cockpit forecast` lists what takes the memory, `cockpit fit` what takes less"
    return Warn(attempt=attempt, code="memory.near", message=message, hint=hint)
