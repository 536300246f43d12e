"""Forward passes of which the ranks have different numbers, on models whose weights are divided among them.

A pass gathers the weights of each layer from all ranks, so no rank can compute one alone. In an evaluation, one rank's
replies are longer than another's. Here each pass is announced; a rank that has none takes part in it with one token,
and throws the result away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.models.segments import Segments
from engine.training.ranks import Ranks


@contextmanager
def in_step(models: Sequence[Any], ranks: Ranks, segments: Segments | None) -> Iterator[None]:
    """Context in which this rank runs as many forward passes of these models as it has, without gradients. It ends on
    all ranks together. No other collective may run within it, and no pass may be left in the middle: RuntimeError."""
    turns = _Turns(models, ranks, segments)
    hooks = []
    for index, model in enumerate(models):
        # In front of the hook that gathers the weights.
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
        """Whether the pass that runs now is of another rank."""
        self._begun = False
        """Whether this rank has begun a pass and not ended it."""

    def announce(self, index: int) -> None:
        """Return when it is the turn of this model's pass."""
        if self._idle:
            return
        while (turn := self._agree(index)) != index:
            assert turn is not None
            self._take_part(turn)
        self._begun = True

    def end_pass(self) -> None:
        self._begun = self._begun and self._idle

    def finish(self) -> None:
        """Take part in the others' passes until no rank has any left."""
        if self._begun:  # the others are still in it, and would take the next collective for one of its
            raise RuntimeError("a forward pass that needs all ranks was left in the middle")
        while (turn := self._agree(None)) is not None:
            self._take_part(turn)

    def _agree(self, index: int | None) -> int | None:
        """The model whose pass is next: the first that a rank asks for. None when no rank asks for any."""
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
