"""The strategy that a profile names, from the table of strategies."""

from __future__ import annotations

from typing import Any

from engine.config.profile import load_reference
from engine.training.parallel import STRATEGIES
from engine.training.parallel.single import SingleProcess
from engine.training.ranks import Ranks


def make_strategy(name: str, accelerator: Any, ranks: Ranks) -> SingleProcess:
    """The strategy `name`; always the single process's where there is only one rank."""
    kind: type[SingleProcess] = load_reference(STRATEGIES[name if ranks.world > 1 else "single"])
    return kind(accelerator, ranks)
