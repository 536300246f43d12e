"""Looks for settings that fit: the cheapest changes of a profile, and its cheapest strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile
from engine.options.tables import AUTO, STRATEGIES
from engine.protocol.messages import ProblemError
from engine.training.checks import check_combinations
from engine.training.forecast.estimate import Given, estimate, replace_settings
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
ENOUGH = 3
"""Changes that are suggested."""

Change = dict[str, Any]
"""`settings`, `time` (relative), and once it is traced `device_bytes`, `host_bytes` and `verdict`."""


def choose_strategy(profile: Profile, host: Host, given: Given) -> tuple[dict[str, Any], Profile]:
    """The forecast of the profile, and the profile with a strategy in the place of `auto`: the first one, in the order
    of their cost, that fits; else the one that takes the least memory."""
    if profile.launch.strategy != AUTO:
        return estimate(profile, host, given), profile
    tried: list[tuple[dict[str, Any], Profile]] = []
    for name in STRATEGIES:
        chosen = replace_settings(profile, {"launch.strategy": name})
        if host.cards == 1:
            return estimate(chosen, host, given), chosen
        if not _is_possible(chosen, host):
            continue
        found = estimate(chosen, host, given)
        if forecasts.judge_all(found, host.card_bytes, host.host_bytes) in ("fits", "unknown"):
            return found, chosen
        tried.append((found, chosen))
    return min(tried, key=lambda pair: (pair[0]["device_bytes"], pair[0]["host_bytes"]))


def find_changes(profile: Profile, host: Host, given: Given, *, count: int = ENOUGH) -> list[Change]:
    """The `count` cheapest changes with which the profile fits, the cheapest first; fewer where there are not so
    many."""
    found: list[Change] = []
    for change in list_changes(profile, host):
        if traced := try_change(profile, host, given, change):
            found.append(traced)
        if len(found) == count:
            break
    return found


def try_change(profile: Profile, host: Host, given: Given, change: Change) -> Change | None:
    """The change with what the run takes then; None if it does not fit, or does not work."""
    try:
        changed = replace_settings(profile, change["settings"])
        if not _is_possible(changed, host):
            return None
        traced = estimate(changed, host, given)
    except (ProblemError, ValueError):
        return None
    verdict = forecasts.judge_all(traced, host.card_bytes, host.host_bytes)
    if verdict not in ("fits", "near"):
        return None
    return {**change, **{key: traced[key] for key in ("device_bytes", "host_bytes")}, "verdict": verdict}


def list_changes(profile: Profile, host: Host) -> list[Change]:
    """Single changes and combinations that take less memory, in the order of their cost."""
    singles = list(_list_single(profile, host))
    merged = [*singles]
    for size in (2, 3, 4):
        merged += list(_combine(singles, size))
    return sorted(merged, key=lambda change: (change["time"], len(change["settings"])))


def _combine(singles: list[Change], size: int) -> Iterator[Change]:
    """Combinations of `size` changes of different settings."""
    import itertools

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


def _list_single(profile: Profile, host: Host) -> Iterator[Change]:
    training, launch = profile.training, profile.launch
    if (smallest := _smallest_micro_batch(profile)) is not None:
        yield {"settings": smallest, "time": SPEEDS["micro_batch"]}
    if not training.gradient_checkpointing:
        yield {"settings": {"training.gradient_checkpointing": True}, "time": SPEEDS["checkpointing"]}
    if host.cards > 1 and launch.strategy in STRATEGIES:
        order = list(STRATEGIES)
        for name in order[order.index(launch.strategy) + 1 :]:
            yield {"settings": {"launch.strategy": name}, "time": SPEEDS[name]}
        if launch.offload == "none" and host.kind != "cpu":
            yield {"settings": {"launch.strategy": "fsdp", "launch.offload": "cpu"}, "time": SPEEDS["offload"]}
    if profile.adapter.kind != "none" and profile.model.quantization == "none" and host.kind != "cpu":
        yield {"settings": {"model.quantization": "nf4"}, "time": SPEEDS["nf4"]}
    if training.optimizer in ("adamw", "adam") and profile.adapter.kind == "none":
        name = "adafactor" if host.kind == "cpu" else "paged_adamw_8bit"
        yield {"settings": {"training.optimizer": name}, "time": SPEEDS["optimizer"]}


def _smallest_micro_batch(profile: Profile) -> dict[str, Any] | None:
    """Settings with the smallest micro-batch of the same global batch; None if it is the smallest already."""
    smaller: Profile | None = profile
    last = profile
    while smaller is not None:
        last = smaller
        smaller = smaller_micro_batch(last, profile.data.max_length)
    if last is profile:
        return None
    keys = (
        ("tokens_per_batch", "accumulation") if profile.training.tokens_per_batch else ("micro_batch", "accumulation")
    )
    return {f"training.{key}": getattr(last.training, key) for key in keys}


def _is_possible(profile: Profile, host: Host) -> bool:
    """Whether the settings go together, on so many ranks."""
    launch = profile.launch.model_copy(update={"processes": host.cards})
    sections = {"model": profile.model, "adapter": profile.adapter, "data": profile.data, "method": profile.method}
    sections |= {"training": profile.training, "launch": launch}
    return not list(check_combinations(sections, Path(profile.directory), None))


def solve(profile: Profile, host: Host, given: Given) -> list[dict[str, Any]]:
    """The ways in which a profile fits, the fastest first: for each strategy and saving the largest micro-batch, with
    the same global batch. Each has `settings`, `time`, the forecast's bytes, and `verdict`."""
    found: list[dict[str, Any]] = []
    for change in ({"settings": {}, "time": 1.0}, *list_changes(replace_auto(profile), host)):
        if len(found) >= 2 * ENOUGH:
            break
        if traced := try_change(replace_auto(profile), host, given, change):
            found.append(traced)
    return found


def replace_auto(profile: Profile) -> Profile:
    """The profile with the first strategy in the place of `auto`."""
    if profile.launch.strategy != AUTO:
        return profile
    return replace(profile, launch=profile.launch.model_copy(update={"strategy": next(iter(STRATEGIES))}))
