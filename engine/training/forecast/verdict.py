"""The forecast of a run with its verdict: whether it fits, and if not, what would."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile
from engine.models import files
from engine.options.tokenizer import TokenizerOptions
from engine.prep.prepare import list_inputs
from engine.training import compiling, liger
from engine.training.forecast import solver
from engine.training.forecast.estimate import Abandoned, Given, estimate
from engine.training.forecast.hosts import Host
from engine.training.forecast.trace import PAGED
from engine.training.memory import smaller_micro_batch
from engine.training.online.options import OnlineOptions
from engine.training.parallel import deepspeed_config

WSL = "microsoft-standard-WSL2"
"""How the name of its kernel ends."""


def forecast(profile: Profile, host: Host, given: Given) -> tuple[dict[str, Any], Profile]:
    """The forecast, kept in the home if it is for devices of this host, and the profile with `launch.strategy: auto`
    replaced by the cheapest strategy that fits. Raises ProblemError."""
    found, chosen = solver.choose_strategy(profile, host, given)
    disk = forecasts.read_free_disk(given.home) if host.is_here else None
    found["verdict"] = forecasts.judge_all(found, host.card_bytes, host.host_bytes, disk)
    found["certain"] = is_certain(chosen, host, given, found["steps"])
    if _may_take_less(given):
        found["certain"], found["floor"] = False, None
    needs_less = forecasts.judge_all(found, host.card_bytes, host.host_bytes) == "too_large"
    if needs_less and found["certain"]:
        found["least"] = _estimate_least(chosen, host, given, found)
    found["base_inputs"] = _stamp_base(profile, given)
    found["inputs"] = _stamp_inputs(profile, given, found["base_inputs"])
    keep(found, (profile, chosen), host, given)
    return found, chosen


def add_changes(found: dict[str, Any], profiles: tuple[Profile, Profile], host: Host, given: Given, limit: int) -> None:
    """Add to a forecast of what does not fit into memory the cheapest `changes` that make it fit, as far as they are
    found in about `limit` seconds."""
    found["changes"] = solver.find_changes(profiles[1], host, given, limit=limit)
    keep(found, profiles, host, given)


def keep(found: dict[str, Any], profiles: tuple[Profile, Profile], host: Host, given: Given) -> None:
    """Keep the forecast in the home. Those of named cards are not: no run is submitted to these."""
    if host.is_here:
        for each in {id(profile): profile for profile in profiles}.values():
            forecasts.keep(given.home, forecasts.compute_key(each, host.place, host.cards), found)


def is_certain(profile: Profile, host: Host, given: Given, steps: int) -> bool:
    """Whether the forecast is of the real rows and without settings whose memory is only guessed, in a run of `steps`
    steps."""
    training, launch = profile.training, profile.launch
    return (
        given.measured
        and launch.offload == "none"
        and launch.strategy != deepspeed_config.NAME
        and profile.model.quantization == "none"
        and not (training.optimizations and _is_fused(profile, host, steps))
        and training.optimizer not in PAGED
        and not isinstance(profile.method, OnlineOptions)
        and (host.kind != "cpu" or host.cards == 1)
    )


def _may_take_less(given: Given) -> bool:
    """Whether a card may hold less than any forecast says: a base that is stored packed, which is forecast unpacked; or
    under WSL, where the driver moves to the host's memory what a card has no room for."""
    path = Path(given.prepared["base"]) / "config.json"
    config = files.read_json_object(path) if path.is_file() else {}
    stored = [config, *(part for part in config.values() if isinstance(part, dict))]
    return platform.uname().release.endswith(WSL) or any(part.get("quantization_config") for part in stored)


def _is_fused(profile: Profile, host: Host, steps: int) -> bool:
    """Whether layers may be compiled, or Liger's, which take less than is forecast."""
    compiled, kernels = profile.training.compile, profile.training.liger
    return compiling.is_enabled(compiled, host.kind, steps) or kernels is True or liger.is_enabled(kernels, host.kind)


def _estimate_least(profile: Profile, host: Host, given: Given, found: dict[str, Any]) -> dict[str, Any] | None:
    """What the run takes with the smallest micro-batch, down to which a run goes by itself; None where that is not
    known."""
    smallest, longest = profile, found["longest"]
    while (smaller := smaller_micro_batch(smallest, longest)) is not None:
        smallest = smaller
    if smallest is not profile:
        try:
            found = estimate(smallest, host, given)
        except Abandoned:
            raise
        except Exception:  # noqa: BLE001 - then nothing is certain
            return None
    return {name: found[name] for name in ("device_bytes", "host_bytes")}


def _stamp_base(profile: Profile, given: Given) -> list[list[Any]] | None:
    """The files of the base and its tokenizer; None where these are not known yet."""
    base, tokenizer = given.prepared["base"], given.prepared.get("tokenizer")
    if isinstance(profile.model.tokenizer, TokenizerOptions) and not given.measured:
        return None  # how many tokens it will have is only guessed
    try:
        paths: list[Path] = []
        for folder in filter(None, (base, tokenizer)):
            paths += sorted(path for path in Path(folder).iterdir() if path.is_file())
        return forecasts.stamp(paths)
    except OSError:  # then the forecast refuses nothing
        return None


def _stamp_inputs(profile: Profile, given: Given, base: list[list[Any]] | None) -> list[list[Any]] | None:
    """The files of rows and base; None where they are not all known."""
    try:
        return forecasts.stamp(list_inputs(profile, given.home)) + base if given.measured and base else None
    except Exception:  # noqa: BLE001 - then the forecast refuses nothing
        return None
