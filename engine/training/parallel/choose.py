"""The strategy that a profile names, from the table of strategies."""

from __future__ import annotations

from typing import Any

from engine.config.overrides import load_reference
from engine.options.launch import LaunchOptions
from engine.options.tables import STRATEGIES, Strategy
from engine.training.parallel.single import SingleProcess
from engine.training.ranks import Ranks


def make_strategy(options: LaunchOptions, accelerator: Any, ranks: Ranks) -> SingleProcess:
    """The strategy of a profile's `launch` section; a single process needs none, whatever the profile says."""
    if ranks.world == 1:
        return SingleProcess(accelerator, ranks)
    kind: type[SingleProcess] = load_reference(find_strategy(options).reference)
    return kind(accelerator, ranks, offload=options.offload == "cpu")


def find_strategy(options: LaunchOptions) -> Strategy:
    """The strategy that a profile names; ddp for an `auto` that no forecast has replaced."""
    return STRATEGIES.get(options.strategy, STRATEGIES["ddp"])
