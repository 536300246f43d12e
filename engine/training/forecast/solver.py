"""Looks for settings that fit: the cheapest changes of a profile, and its cheapest strategy."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile
from engine.options.tables import AUTO, FORECAST
from engine.protocol.messages import ProblemError
from engine.training.checks import check_combinations
from engine.training.forecast.estimate import Abandoned, Given, estimate, replace_settings
from engine.training.forecast.hosts import Host
from engine.training.memory import smaller_micro_batch

SPEEDS = {
    "micro_batch": 1.05,
    "checkpointing": 1.33,
    "zero1": 1.02,
    "zero2": 1.1,
    "fsdp": 1.2,
    "nf4": 1.35,
    "int8": 1.5,
    "optimizer": 1.1,
    "masters": 1.0,
    "offload": 3.0,
}
"""Relative time of a step after a change."""
MOST = 12
"""Changes that are tried, each of which takes a traced step."""
ENOUGH = 3
"""Changes that are suggested."""
SECONDS = 120
"""Time that the search takes, unless another limit is given: no change is tried after it."""

Change = dict[str, Any]
"""`settings`, `time` (relative), and once it is traced `device_bytes`, `host_bytes` and `verdict`."""


def choose_strategy(profile: Profile, host: Host, given: Given) -> tuple[dict[str, Any], Profile]:
    """The forecast of the profile, and the profile with a strategy in the place of `auto`: the first one, in the order
    of their cost, that fits; else the one that takes the least memory."""
    if profile.launch.strategy != AUTO:
        return estimate(profile, host, given), profile
    tried: list[tuple[dict[str, Any], Profile]] = []
    first = replace_auto(profile)
    for name in FORECAST:
        chosen = replace_settings(profile, {"launch.strategy": name})
        if host.cards == 1:
            return estimate(chosen, host, given), chosen
        if not _is_possible(chosen, host):
            continue
        found = estimate(chosen, host, given)
        if forecasts.judge_all(found, host.card_bytes, host.host_bytes) in ("fits", "unknown"):
            return found, chosen
        tried.append((found, chosen))
    if not tried:  # as without a forecast
        return estimate(first, host, given), first
    return min(tried, key=lambda pair: (pair[0]["device_bytes"], pair[0]["host_bytes"]))


def find_changes(
    profile: Profile, host: Host, given: Given, *, count: int = ENOUGH, limit: float = SECONDS
) -> list[Change]:
    """The `count` cheapest changes with which the profile fits, the cheapest first; fewer where there are not so many,
    or where they are not found in `limit` seconds."""
    found: list[Change] = []
    end = time.monotonic() + limit
    everything = combine_all(profile, host)
    if _works(profile, host, everything) and not try_change(profile, host, given, everything):
        return []
    halved = [change for change in _list_single(profile, host) if _is_halved(change)]
    for change in halved:  # the smaller, the less it takes: until one fits
        if time.monotonic() > end:
            break
        if traced := try_change(profile, host, given, change):
            found.append(traced)
            break
    for change in [change for change in list_changes(profile, host) if change not in halved][:MOST]:
        if time.monotonic() > end or len(found) == count:
            break
        if traced := try_change(profile, host, given, change):
            found.append(traced)
    return sorted(found, key=lambda change: (change["time"], len(change["settings"])))


def _is_halved(change: Change) -> bool:
    """Whether a change is of the micro-batch alone."""
    return set(change["settings"]) <= {"training.micro_batch", "training.tokens_per_batch", "training.accumulation"}


def spread(profile: Profile, host: Host) -> Change:
    """Settings with which the profile has the same global batch on the host's cards as on as many processes as it
    names; none where it names no number, or where its rows cannot be divided so."""
    processes, training = profile.launch.processes, profile.training
    if not isinstance(processes, int) or processes == host.cards:
        return {}
    if training.tokens_per_batch:
        passes, rest = divmod(training.accumulation * processes, host.cards)
        return {} if rest or not passes else {"training.accumulation": passes}
    rows, rest = divmod(training.rows * training.accumulation * processes, host.cards)
    if rest or not rows:
        return {}
    if training.micro_batch == AUTO:
        return {"training.accumulation": rows}  # the rows of a rank
    micro = next(size for size in range(min(training.rows, rows), 0, -1) if rows % size == 0)
    return {"training.micro_batch": micro, "training.accumulation": rows // micro}


def _works(profile: Profile, host: Host, change: Change) -> bool:
    try:
        return _is_possible(replace_settings(profile, change["settings"]), host)
    except (ProblemError, ValueError):
        return False


def try_change(profile: Profile, host: Host, given: Given, change: Change) -> Change | None:
    """The change with what the run takes then; None if it does not fit, or does not work."""
    try:
        changed = replace_settings(profile, change["settings"])
        if not _is_possible(changed, host):
            return None
        traced = estimate(changed, host, given)
    except Abandoned:
        raise
    except Exception:  # noqa: BLE001 - one that cannot be traced is not suggested
        return None
    verdict = forecasts.judge_all(traced, host.card_bytes, host.host_bytes)
    if verdict not in ("fits", "near"):
        return None
    return {**change, **{key: traced[key] for key in ("device_bytes", "host_bytes")}, "verdict": verdict}


def list_changes(profile: Profile, host: Host) -> list[Change]:
    """Single changes and combinations that take less memory, in the order of their cost."""
    singles = list(_list_single(profile, host))
    merged = [*singles]
    smaller = [single for single in singles if _is_halved(single)]
    singles = [single for single in singles if single not in smaller[:-1]]  # with others, the smallest micro-batch
    for size in (2, 3, 4):
        merged += list(_combine(singles, size))
    return sorted(merged, key=lambda change: (change["time"], len(change["settings"])))


def _combine(singles: list[Change], size: int) -> Iterator[Change]:
    """Combinations of `size` changes of different settings."""
    for parts in itertools.combinations(singles, size):
        settings: dict[str, Any] = {}
        for part in parts:
            settings |= part["settings"]
        if len(settings) < sum(len(part["settings"]) for part in parts):
            continue  # two values of one setting
        time = 1.0
        for part in parts:
            time *= part["time"]
        yield {"settings": settings, "time": round(time, 2)}


def combine_all(profile: Profile, host: Host) -> Change:
    """All single changes at once: if the profile does not fit with these, it does not with any."""
    settings: dict[str, Any] = {}
    for single in _list_single(profile, host):
        settings |= single["settings"]
    return {"settings": settings, "time": 1.0}


def combine_possible(profile: Profile, host: Host) -> Change:
    """As many single changes at once as go together."""
    settings: dict[str, Any] = {}
    times: dict[frozenset[str], float] = {}
    for single in _list_single(profile, host):
        if _works(profile, host, {"settings": settings | single["settings"]}):
            settings |= single["settings"]
            times[frozenset(single["settings"])] = single["time"]
    return {"settings": settings, "time": round(math.prod(times.values()), 2)}


def _list_single(profile: Profile, host: Host) -> Iterator[Change]:
    training, launch = profile.training, profile.launch
    for at, smaller in enumerate(list_micro_batches(profile), 1):
        yield {"settings": smaller, "time": round(1 + at * (SPEEDS["micro_batch"] - 1), 2)}
    if not training.gradient_checkpointing:
        yield {"settings": {"training.gradient_checkpointing": True}, "time": SPEEDS["checkpointing"]}
    if host.cards > 1 and launch.strategy in FORECAST:
        for name in FORECAST[FORECAST.index(launch.strategy) + 1 :]:
            yield {"settings": {"launch.strategy": name}, "time": SPEEDS[name]}
        if launch.offload == "none" and host.kind != "cpu":
            yield {"settings": {"launch.strategy": "fsdp", "launch.offload": "cpu"}, "time": SPEEDS["offload"]}
    if profile.adapter.kind != "none" and profile.model.quantization == "none" and host.kind != "cpu":
        for name in ("int8", "nf4"):  # the smaller comes last: it is the one of `combine_all`
            yield {"settings": {"model.quantization": name}, "time": SPEEDS[name]}
    if training.optimizer in ("adamw", "adam") and profile.adapter.kind == "none":
        name = "adafactor" if host.kind == "cpu" else "paged_adamw_8bit"
        yield {"settings": {"training.optimizer": name}, "time": SPEEDS["optimizer"]}


def list_micro_batches(profile: Profile) -> Iterator[dict[str, Any]]:
    """Settings with smaller micro-batches of the same global batch, the largest first."""
    keys = (
        ("tokens_per_batch", "accumulation") if profile.training.tokens_per_batch else ("micro_batch", "accumulation")
    )
    smaller = smaller_micro_batch(profile, profile.data.max_length)
    while smaller is not None:
        yield {f"training.{key}": getattr(smaller.training, key) for key in keys}
        smaller = smaller_micro_batch(smaller, profile.data.max_length)


def _is_possible(profile: Profile, host: Host) -> bool:
    """Whether the settings go together, on so many ranks."""
    launch = profile.launch.model_copy(update={"processes": host.cards})
    sections = {"model": profile.model, "adapter": profile.adapter, "data": profile.data, "method": profile.method}
    sections |= {"training": profile.training, "launch": launch}
    return not list(check_combinations(sections, Path(profile.directory), None))


def replace_auto(profile: Profile) -> Profile:
    """The profile with the first strategy in the place of `auto`."""
    if profile.launch.strategy != AUTO:
        return profile
    return replace(profile, launch=profile.launch.model_copy(update={"strategy": FORECAST[0]}))
