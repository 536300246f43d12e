"""The strategy that a profile names, from the table of strategies."""

from __future__ import annotations

from typing import Any

from engine.config.overrides import load_reference
from engine.config.profile import Profile
from engine.options.launch import LaunchOptions
from engine.options.tables import STRATEGIES, Strategy
from engine.training.parallel.single import SingleProcess
from engine.training.ranks import Ranks


def make_strategy(profile: Profile, accelerator: Any, ranks: Ranks) -> SingleProcess:
    """The strategy that the profile names; a single process needs none, whatever the profile says."""
    if ranks.world == 1:
        return SingleProcess(accelerator, ranks)
    kind: type[SingleProcess] = load_reference(find_strategy(profile.launch).reference)
    strategy = kind(accelerator, ranks, offload=profile.launch.offload == "cpu")
    strategy.configure(profile)
    return strategy


def find_strategy(options: LaunchOptions) -> Strategy:
    """The strategy that a profile names; ddp for an `auto` that no forecast has replaced."""
    return STRATEGIES.get(options.strategy, STRATEGIES["ddp"])
