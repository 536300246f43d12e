"""The forecast of a run with its verdict: whether it fits, and if not, what would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile
from engine.prep.prepare import list_inputs
from engine.training.forecast import solver
from engine.training.forecast.estimate import Abandoned, Given, estimate
from engine.training.forecast.hosts import Host
from engine.training.forecast.trace import PAGED
from engine.training.memory import smaller_micro_batch
from engine.training.online.options import OnlineOptions


def forecast(profile: Profile, host: Host, given: Given) -> tuple[dict[str, Any], Profile]:
    """The forecast, kept in the home if it is for devices of this host, and the profile with `launch.strategy: auto`
    replaced by the cheapest strategy that fits. Raises ProblemError."""
    found, chosen = solver.choose_strategy(profile, host, given)
    found["verdict"] = forecasts.judge_all(found, host.card_bytes, host.host_bytes)
    found["certain"] = is_certain(chosen, host, given)
    if found["verdict"] == "too_large" and found["certain"]:
        found["least"] = _estimate_least(chosen, host, given, found)
    found["inputs"] = _stamp_inputs(profile, given)
    keep(found, (profile, chosen), host, given)
    return found, chosen


def add_changes(found: dict[str, Any], profiles: tuple[Profile, Profile], host: Host, given: Given, limit: int) -> None:
    """Add to a forecast with the verdict `too_large` the cheapest `changes` that make it fit, as far as they are found
    in about `limit` seconds."""
    found["changes"] = solver.find_changes(profiles[1], host, given, limit=limit)
    keep(found, profiles, host, given)


def keep(found: dict[str, Any], profiles: tuple[Profile, Profile], host: Host, given: Given) -> None:
    """Keep the forecast in the home. Those of named cards are not: no run is submitted to these."""
    if host.is_here:
        for each in {id(profile): profile for profile in profiles}.values():
            forecasts.keep(given.home, forecasts.compute_key(each, host.place, host.cards), found)


def is_certain(profile: Profile, host: Host, given: Given) -> bool:
    """Whether the forecast is of the real rows and without settings whose memory is only guessed."""
    training, launch = profile.training, profile.launch
    return (
        given.measured
        and launch.offload == "none"
        and profile.model.quantization == "none"
        and not (training.optimizations and _is_fused(training.compile, training.liger, host))
        and training.optimizer not in PAGED
        and not isinstance(profile.method, OnlineOptions)
        and (host.kind != "cpu" or host.cards == 1)
    )


def _is_fused(compiled: Any, liger: Any, host: Host) -> bool:
    """Whether layers may be compiled, or Liger's, which take less than is forecast; `auto` means so on cards."""
    return True in (compiled, liger) or (host.kind != "cpu" and "auto" in (compiled, liger))


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


def _stamp_inputs(profile: Profile, given: Given) -> list[list[Any]] | None:
    """The files of rows and base; None where they are not all known."""
    base, tokenizer = given.prepared["base"], given.prepared.get("tokenizer")
    try:
        paths = list_inputs(profile, given.home)
        for folder in filter(None, (base, tokenizer)):
            paths += sorted(path for path in Path(folder).iterdir() if path.is_file())
        return forecasts.stamp(paths) if given.measured else None
    except Exception:  # noqa: BLE001 - then the forecast refuses nothing
        return None
