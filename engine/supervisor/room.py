"""Checks at submission whether there is room for a run in memory, as far as there is a forecast."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import psutil

from engine.config import forecasts
from engine.config.profile import Profile
from engine.hardware import host_memory
from engine.protocol import stages
from engine.protocol.environment import build_job_environment
from engine.protocol.home import Home
from engine.protocol.journal import Warn
from engine.protocol.messages import Device, ProblemError, Submit
from engine.supervisor.devices import Devices


class Unexplained(ProblemError):
    """The refusal of a run whose forecast was made without looking for the changes that would make it fit, as the one
    that is shown while a profile is being written."""


def check_submitted(message: Submit, profile: Profile, home: Home, devices: Devices, *, idle: bool) -> str:
    """`check_memory` for a run that trains on this host."""
    if message.kind != "train" or message.first in stages.AFTER or profile.launch.via != "local":
        return ""
    environment = build_job_environment(message.environment, profile.launch.environment, os.environ)
    return check_memory(profile, home, devices.list_visible(environment), idle=idle)


def check_memory(profile: Profile, home: Home, cards: Sequence[Device], *, idle: bool) -> str:
    """A warning where the run hardly fits by its forecast, else "". `cards` are those that it may use, and `idle` says
    whether no other run takes memory now. Without a forecast nothing is checked: the prepare stage makes one where
    there are accelerators. Raises ProblemError for a run that cannot fit."""
    try:
        found = find_forecast(profile, home, cards)
        if found is None:
            return ""
        current, disk = forecasts.is_current(found), forecasts.read_free_disk(home)
        card, host = forecasts.find_largest(cards), host_memory.read_total()
        if is_fixed(profile, home):
            if is_refused(found, card, host):
                raise (ProblemError if "changes" in found else Unexplained)(
                    forecasts.explain_refusal(found, card, host)
                )
            if current and disk is not None and forecasts.judge_disk(found, disk) == "too_large":
                raise ProblemError(forecasts.explain_full_disk(found, disk, home.runs))
        if current is False:
            return ""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        free = memory.available + swap.free if idle else memory.total + swap.total
        return forecasts.describe_near(found, card, free, disk)
    except ProblemError:
        raise
    except Exception:  # noqa: BLE001 - a damaged forecast stops no run
        return ""


def is_refused(found: dict[str, Any], card: int | None, host: int | None) -> bool:
    """Whether the run cannot fit for certain by a forecast of what is there now. What it takes whatever its rows are
    needs only its base."""
    if forecasts.is_current(found):
        return forecasts.is_hopeless(found, card, host)
    base = forecasts.is_current(found, "base_inputs")
    return bool(base) and forecasts.exceeds_floor(found, card, host)


def is_fixed(profile: Profile, home: Home) -> bool:
    """Whether the base's name is that of a model, and not of a run, whose best checkpoint may be another one now."""
    named = profile.model.base
    if not named or named == "last" or "@" in named:
        return False
    return not home.runs.is_dir() or not any(each.name.startswith(named) for each in home.runs.iterdir())


def find_forecast(profile: Profile, home: Home, cards: Sequence[Device]) -> dict[str, Any] | None:
    """The kept forecast of this profile on these cards, on the CPU if there are none."""
    processes = profile.launch.processes
    count = processes if isinstance(processes, int) else max(1, len(cards))
    return forecasts.read(home, forecasts.compute_key(profile, forecasts.find_place(cards), count))


def warn_near(attempt: int, message: str) -> Warn:
    """The warning of a run that hardly fits."""
    return Warn(attempt=attempt, code="memory.near", message=message, hint=forecasts.NEAR_HINT)
