"""How several processes share one training step. One row per strategy: `launch.strategy` -> its class.

A strategy owns the prepared model and the optimiser. The training loop calls, in this order:

prepare(model, make_optimizer)    place or shard the model and make its optimiser; sets `model` and `optimizer`
micro_batch()                     context of one forward and backward pass
reduce()                          gradients become those of the whole global batch, on every rank
clip(max_norm)                    scale the gradients down to this norm; returns the norm before; 0 clips nothing
save()                            the optimiser's state as one process would have it, complete on rank 0
load(file)                        go on from a state that `save` returned, written by any strategy

A new strategy is one file and one row here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.training.parallel.single import SingleProcess
    from engine.training.ranks import Ranks

STRATEGIES = {
    "single": "engine.training.parallel.single:SingleProcess",
    "ddp": "engine.training.parallel.ddp:DataParallel",
    "zero2": "engine.training.parallel.zero2:Zero2",
}


def make_strategy(name: str, accelerator: Any, ranks: Ranks) -> SingleProcess:
    """The strategy `name` of a profile; a single process needs none, whatever the profile says."""
    module, _, kind = STRATEGIES[name if ranks.world > 1 else "single"].partition(":")
    strategy: SingleProcess = getattr(importlib.import_module(module), kind)(accelerator, ranks)
    return strategy
