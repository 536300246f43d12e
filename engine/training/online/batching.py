"""Batching of prompts: micro-batches count replies, so a step has as many prompts as replies divided by
`generations`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.config.profile import Profile
from engine.prep.batching import GlobalBatches
from engine.prep.token_batching import TokenBatches, TokenPlan
from engine.training.online.options import OnlineOptions


def make_global_batches(
    profile: Profile,
    lengths: Sequence[int],
    rank: int = 0,
    world: int = 1,
    *,
    plan: TokenPlan | None = None,
    padded: bool = False,
) -> GlobalBatches:
    """The sampler that assigns the rows of a run with this profile to its steps and ranks. `plan` is what a global
    batch in tokens has been since the run's start, where the settings of today are other ones."""
    settings, method = profile.training, profile.method
    if budget := settings.tokens_per_batch:
        plan = plan or TokenPlan(budget, settings.accumulation * world)
        return TokenBatches(lengths, plan, budget, settings.accumulation, rank, world, settings.seed, padded=padded)
    shape = (lengths, settings.rows, settings.accumulation, rank, world, settings.seed)
    if isinstance(method, OnlineOptions):
        return PromptBatches(*shape, method.generations, method.iterations)
    return GlobalBatches(*shape)


class PromptBatches(GlobalBatches):
    """Each global batch of prompts is used for `iterations` steps. A rank's prompts are all in the first of its
    `accumulation` lists: it samples all replies before dividing them into micro-batches."""

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
    def size(self) -> int:
        """Prompts in a global batch."""
        return self.micro_batch * self.accumulation * self.world // self.generations

    @property
    def per_epoch(self) -> int:
        return super().per_epoch * self.iterations

    def rows_of(self, step: int) -> list[int]:
        epoch, index = divmod(step, self.per_epoch)
        first = index // self.iterations * self.size
        return self._by_length(self.order(epoch)[first : first + self.size])

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.step, self.per_epoch)
        order = self.order(epoch)
        for index in range(first, self.per_epoch):
            start = index // self.iterations * self.size
            yield self._by_length(order[start : start + self.size])[self.rank :: self.world]
            yield from ([] for _ in range(self.accumulation - 1))
