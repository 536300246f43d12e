"""The strategy that a profile names, from the table of strategies."""

from __future__ import annotations

from typing import Any

from engine.config.overrides import load_reference
from engine.options.tables import STRATEGIES
from engine.training.parallel.single import SingleProcess
from engine.training.ranks import Ranks


def make_strategy(name: str, accelerator: Any, ranks: Ranks) -> SingleProcess:
    """The strategy `name` of a profile; a single process needs none, whatever the profile says."""
    kind: type[SingleProcess] = load_reference(STRATEGIES[name].reference) if ranks.world > 1 else SingleProcess
    return kind(accelerator, ranks)
