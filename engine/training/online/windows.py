"""Prompts into steps: micro-batches count replies, so a step takes a `generations`-th as many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.config.profile import Profile
from engine.prep.batching import Windows
from engine.training.online.options import OnlineOptions


def windows_of(profile: Profile, lengths: Sequence[int], rank: int = 0, world: int = 1) -> Windows:
    """What deals the rows of a run with this profile to its steps and ranks."""
    settings, method = profile.training, profile.method
    shape = (lengths, settings.micro_batch, settings.accumulation, rank, world, settings.seed)
    if isinstance(method, OnlineOptions):
        return PromptWindows(*shape, method.generations, method.iterations)
    return Windows(*shape)


class PromptWindows(Windows):
    """Each window is `iterations` steps. A rank's prompts of a window all come in the first of its `accumulation` lists: it answers them
    all before it deals the replies to micro-batches."""

    def __init__(
        self,
        lengths: Sequence[int],
        micro_batch: int,
        accumulation: int,
        rank: int,
        world: int,
        seed: int,
        generations: int,
        iterations: int,
    ) -> None:
        super().__init__(lengths, micro_batch, accumulation, rank, world, seed)
        self.generations, self.iterations = generations, iterations

    @property
    def global_batch(self) -> int:
        """Prompts."""
        return self.micro_batch * self.accumulation * self.world // self.generations

    @property
    def per_epoch(self) -> int:
        return super().per_epoch * self.iterations

    def window(self, step: int) -> list[int]:
        epoch, index = divmod(step, self.per_epoch)
        first = index // self.iterations * self.global_batch
        return self._by_length(self.order(epoch)[first : first + self.global_batch])

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for start in range(0, len(order), self.global_batch):
            mine = self._by_length(order[start : start + self.global_batch])[self.rank :: self.world]
            for _ in range(self.iterations):
                yield mine
                yield from ([] for _ in range(self.accumulation - 1))
