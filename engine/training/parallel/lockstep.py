"""Lets ranks whose weights are divided run different numbers of forward passes, as in an evaluation.

A pass gathers the weights of each layer from all ranks, so no rank can compute one alone. But in an evaluation, one
rank's replies are longer than another's. So each pass is announced to all ranks; a rank that has none of its own takes
part with one token and throws the result away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.models.segments import Segments
from engine.training.ranks import Ranks


@contextmanager
def in_step(models: Sequence[Any], ranks: Ranks, segments: Segments | None) -> Iterator[None]:
    """Context in which each rank runs any number of forward passes of these models, without gradients. It ends on all
    ranks together. No other collective may run within it. Raises RuntimeError if a pass was left in the middle."""
    turns = _Turns(models, ranks, segments)
    hooks = []
    for index, model in enumerate(models):
        # This must run before the hook that gathers the weights.
        hooks.append(model.register_forward_pre_hook(lambda *_, index=index: turns.announce(index), prepend=True))
        hooks.append(model.register_forward_hook(lambda *_: turns.end_pass()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    turns.finish()


class _Turns:
    def __init__(self, models: Sequence[Any], ranks: Ranks, segments: Segments | None) -> None:
        self._models, self._ranks, self._segments = models, ranks, segments or Segments()
        self._idle = False
        """Whether this rank is taking part in the pass of another rank."""
        self._begun = False
        """Whether this rank has begun a pass of its own and not ended it."""

    def announce(self, index: int) -> None:
        """Take part in the passes of other models until all ranks agree that this model's pass is next."""
        if self._idle:
            return
        while (turn := self._agree(index)) != index:
            assert turn is not None
            self._take_part(turn)
        self._begun = True

    def end_pass(self) -> None:
        if not self._idle:
            self._begun = False

    def finish(self) -> None:
        """Take part in the others' passes until no rank has any left."""
        if self._begun:  # the others are still in the pass, and would take the next collective for one of the pass
            raise RuntimeError("a forward pass that needs all ranks was left in the middle")
        while (turn := self._agree(None)) is not None:
            self._take_part(turn)

    def _agree(self, index: int | None) -> int | None:
        """The index of the model whose pass is next: the lowest that any rank asks for; None if no rank asks."""
        asked = self._ranks.sum([float(index == other) for other in range(len(self._models))])
        return next((other for other, count in enumerate(asked) if count), None)

    def _take_part(self, index: int) -> None:
        import torch

        model = self._models[index]
        training, lengths = model.training, self._segments.lengths
        self._idle, self._segments.lengths = True, None
        if training:
            model.eval()  # dropout would draw random numbers
        try:
            with torch.no_grad():
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
        finally:
            self._idle, self._segments.lengths = False, lengths
            if training:
                model.train()
