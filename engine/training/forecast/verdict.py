"""The forecast of a run with its verdict: whether it fits, and if not, what would."""

from __future__ import annotations

from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile
from engine.training.forecast import solver
from engine.training.forecast.estimate import Given
from engine.training.forecast.hosts import Host


def forecast(profile: Profile, host: Host, given: Given) -> tuple[dict[str, Any], Profile]:
    """The forecast, kept in the home, and the profile with `launch.strategy: auto` replaced by the cheapest strategy
    that fits. With the `verdict` `too_large` it has `changes`, the cheapest ones that make it fit. Raises
    ProblemError."""
    found, chosen = solver.choose_strategy(profile, host, given)
    found["verdict"] = forecasts.judge_all(found, host.card_bytes, host.host_bytes)
    if found["verdict"] == "too_large":
        found["changes"] = solver.find_changes(chosen, host, given)
    for each in {id(profile): profile, id(chosen): chosen}.values():
        forecasts.keep(given.home, forecasts.compute_key(each, host.kind, host.cards), found)
    return found, chosen
