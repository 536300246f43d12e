"""The ways in which a profile fits: as it is, with changes that take less, and, where it leaves much memory, with a
larger micro-batch, longer rows or a higher rank. Where nothing of that fits, with a lower rank or shorter rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from engine.config.profile import Profile
from engine.options.tables import AUTO
from engine.protocol.messages import ProblemError
from engine.training.forecast import estimate, solver
from engine.training.forecast.estimate import Given
from engine.training.forecast.hosts import Host
from engine.training.forecast.solver import Change

SHARE = 0.7
"""Of the memory that there is, what a profile takes at most for larger settings to be looked for."""
SECONDS = 60
"""Time that the search takes: nothing larger is tried after it."""
HIGHEST_RANK = 256
"""Rank up to which higher ones are tried."""
SHORTEST = 128
"""Tokens down to which shorter rows are tried."""


def solve(profile: Profile, host: Host, given: Given) -> list[Change]:
    """The ways in which a profile fits, the fastest first, all with the same global batch: as it is, and with changes.
    Then larger settings that fit. Where nothing fits, settings that change what is learnt."""
    profile = solver.replace_auto(profile)
    unchanged = solver.try_change(profile, host, given, {"settings": {}, "time": 1.0})
    changes = solver.find_changes(profile, host, given, count=2 * solver.ENOUGH)
    if not unchanged and not changes:
        return find_smaller(profile, host, given)
    larger = find_larger(profile, host, given, unchanged) if unchanged else []
    return [*filter(None, [unchanged]), *changes, *larger]


def find_smaller(profile: Profile, host: Host, given: Given) -> list[Change]:
    """For rank and length, the largest that fits with all other changes that take less, found by halving; for both
    together where neither is enough. `grows` says what is given up."""
    most, end = solver.combine_possible(profile, host), time.monotonic() + SECONDS
    found: list[Change] = []
    ranks = list(_list_lower_ranks(profile))
    lengths = list(_list_shorter(profile))
    both = [_merge(ranks[-1], each) for each in lengths] if ranks else []
    for smaller in (ranks, lengths, both):
        if smaller is both and found:
            break
        for change in smaller:
            if time.monotonic() > end:
                break
            if traced := _try(profile, host, given, _add_smallest(profile, _merge(most, change))):
                found.append(traced)
                break
    return found


def _merge(one: Change, other: Change) -> Change:
    grows = "; ".join(each["grows"] for each in (one, other) if "grows" in each)
    time = round(one["time"] * other["time"], 2)
    return {"settings": one["settings"] | other["settings"], "time": time, "grows": grows}


def _add_smallest(profile: Profile, change: Change) -> Change:
    """The change with the smallest micro-batch: with shorter rows one of tokens may be smaller."""
    try:
        smaller = list(solver.list_micro_batches(estimate.replace_settings(profile, change["settings"])))
    except (ProblemError, ValueError):
        return change
    return {**change, "settings": change["settings"] | smaller[-1]} if smaller else change


def find_larger(profile: Profile, host: Host, given: Given, unchanged: Change) -> list[Change]:
    """For each of micro-batch, length and rank, the largest that fits, found by doubling; each row says in `grows` what
    grows. None where `unchanged`, the profile as it is, leaves little."""
    used, room = unchanged["device_bytes"] or unchanged["host_bytes"], host.card_bytes
    room = room if unchanged["device_bytes"] else host.host_bytes
    if room is None or unchanged["verdict"] != "fits" or used > SHARE * room:
        return []
    end, found = time.monotonic() + SECONDS, []
    for larger in (_list_micro_batches(profile), _list_ranks(profile), _list_lengths(profile, given)):
        largest = None
        for change in larger:
            if time.monotonic() > end or (traced := _try(profile, host, given, change)) is None:
                break
            largest = traced
        if largest is not None:
            found.append(largest)
    return found


def _try(profile: Profile, host: Host, given: Given, change: Change) -> Change | None:
    with ExitStack() as stack:
        if "data.max_length" in change["settings"]:
            try:
                changed = estimate.replace_settings(profile, change["settings"])
                given = estimate.assume_rows(changed, given, stack, ranks=host.cards)  # the real ones are cut
            except (ProblemError, ValueError):
                return None
        traced = solver.try_change(profile, host, given, change)
    return traced if traced is not None and traced["verdict"] == "fits" else None


def _list_micro_batches(profile: Profile) -> Iterator[Change]:
    """Larger micro-batches of the same global batch."""
    training = profile.training
    if training.micro_batch == AUTO:
        return  # it grows by itself
    key, size = "micro_batch", training.rows
    if training.tokens_per_batch:
        key, size = "tokens_per_batch", training.tokens_per_batch
    passes, faster = training.accumulation, 1.0
    while passes % 2 == 0:
        size, passes, faster = 2 * size, passes // 2, faster / solver.SPEEDS["micro_batch"]
        settings = {f"training.{key}": size, "training.accumulation": passes}
        yield {"settings": settings, "time": round(faster, 2), "grows": "a larger micro-batch, the same global batch"}


def _list_ranks(profile: Profile) -> Iterator[Change]:
    """Higher ranks, scaled as the profile's is."""
    adapter: Any = profile.adapter
    rank, alpha, slower = getattr(adapter, "rank", None), getattr(adapter, "alpha", None), 1.0
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)):
        return
    while 2 * rank <= HIGHEST_RANK:
        times = 2**0.5 if adapter.kind == "rslora" else 2  # it divides by the rank's root
        rank, alpha, slower = 2 * rank, round(times * alpha, 4), slower * 1.02
        settings = {"adapter.rank": rank, "adapter.alpha": alpha}
        yield {"settings": settings, "time": round(slower, 2), "grows": "a higher rank, of the same scale"}


def _list_lower_ranks(profile: Profile) -> Iterator[Change]:
    """Lower ranks, scaled as the profile's is."""
    adapter: Any = profile.adapter
    rank, alpha = getattr(adapter, "rank", None), getattr(adapter, "alpha", None)
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)):
        return
    while rank > 1:
        lower = rank // 2
        alpha *= (lower / rank) ** (0.5 if adapter.kind == "rslora" else 1)
        rank = lower
        settings = {"adapter.rank": rank, "adapter.alpha": round(alpha, 4)}
        yield {"settings": settings, "time": 1.0, "grows": "a lower rank, of the same scale: it can learn less"}


def _list_shorter(profile: Profile) -> Iterator[Change]:
    """Shorter rows, with which the time is that of rows which are all so long."""
    length, faster = profile.data.max_length, 1.0
    while length // 2 >= SHORTEST:
        length, faster = length // 2, faster / 2
        words = "shorter rows: this changes the data"
        yield {"settings": {"data.max_length": length}, "time": faster, "grows": words}


def _list_lengths(profile: Profile, given: Given) -> Iterator[Change]:
    """Longer rows, up to the positions that the base knows."""
    most = getattr(estimate.read_config(given, profile), "max_position_embeddings", None)
    length, slower = profile.data.max_length, 1.0
    while isinstance(most, int) and 2 * length <= most:
        length, slower = 2 * length, 2 * slower
        words = "longer rows; the time is that of rows which are all so long"
        yield {"settings": {"data.max_length": length}, "time": slower, "grows": words}
