"""Micro-batches that are limited by their number of tokens (`training.tokens_per_batch`) instead of rows.

Rows are packed once, before the first step, into groups of at most `budget` tokens. So the number of steps is known
beforehand, and each row is used once in an epoch. Each epoch shuffles the groups and divides them into global batches.
Each group of a global batch is a micro-batch of one rank. If memory was short, so that the budget has become smaller,
the rows of a global batch are packed again, into more and smaller micro-batches. With another number of ranks than at
the start of the run, the global batches stay the same, and their micro-batches are divided among the new ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from engine.prep.batching import GlobalBatches
from engine.prep.packing import pack


class TokenPlan(NamedTuple):
    """The size of a global batch, the same for the whole run: `groups` groups of at most `budget` tokens."""

    budget: int
    groups: int


def group_by_tokens(lengths: Sequence[int], budget: int, *, padded: bool = False) -> list[list[int]]:
    """The rows in groups of at most `budget` tokens; a longer row is a group of its own. With `padded`, each row of a
    group counts as many tokens as the longest one."""
    if not lengths:
        return []
    if not padded:
        order, sizes = pack([max(1, min(length, budget)) for length in lengths], budget)
        rows = iter(order.tolist())
        return [[next(rows) for _ in range(size)] for size in sizes.tolist()]
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class TokenBatches(GlobalBatches):
    """A batch sampler like `GlobalBatches`: for each global batch, every rank gets the same number of lists of row
    numbers. `budget` is the largest number of tokens in a micro-batch, at most that of the plan; with `padded`, padding
    counts."""

    def __init__(
        self,
        lengths: Sequence[int],
        plan: TokenPlan,
        budget: int,
        accumulation: int,
        rank: int,
        world: int,
        seed: int,
        *,
        padded: bool = False,
    ) -> None:
        super().__init__(lengths, 1, accumulation, rank, world, seed)
        self.plan, self.budget, self.padded = plan, budget, padded
        self.groups = group_by_tokens(lengths, plan.budget, padded=padded)
        self._shuffled: tuple[int, list[list[int]]] = (-1, [])
        """An epoch, and the groups in its order."""

    @property
    def size(self) -> int:
        """Rows in a global batch, on average."""
        return max(1, round(len(self.lengths) / max(1, self.per_epoch)))

    @property
    def per_epoch(self) -> int:
        return -(-len(self.groups) // self.plan.groups)

    def __len__(self) -> int:
        return sum(self.count_micro_batches(step) for step in range(self.per_epoch))

    def count_micro_batches(self, step: int) -> int:
        return len(self._divide_groups(self._groups_of(step))) // self.world

    def pick_longest(self) -> list[int]:
        parts = [[row for row in part if row not in self.skipped] for part in self._divide_groups(self.groups)]
        return max(parts, key=lambda part: (self._count(part), max(map(self.lengths.__getitem__, part), default=0)))

    def order(self, epoch: int) -> list[int]:
        return [row for group in self._shuffle(epoch) for row in group]

    def rows_of(self, step: int) -> list[int]:
        return [row for group in self._groups_of(step) for row in group]

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.step, self.per_epoch)
        groups = self._shuffle(epoch)
        for start in range(first * self.plan.groups, len(groups), self.plan.groups):
            for part in self._divide_groups(groups[start : start + self.plan.groups])[self.rank :: self.world]:
                yield [row for row in part if row not in self.skipped]

    def group_held_out(self, lengths: Sequence[int]) -> list[list[int]]:
        return group_by_tokens(lengths, 2 * self.budget, padded=self.padded)

    def _groups_of(self, step: int) -> list[list[int]]:
        epoch, index = divmod(step, self.per_epoch)
        return self._shuffle(epoch)[index * self.plan.groups : (index + 1) * self.plan.groups]

    def _shuffle(self, epoch: int) -> list[list[int]]:
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.groups), generator=generator).tolist()
            self._shuffled = (epoch, [self.groups[index] for index in order])
        return self._shuffled[1]

    def _divide_groups(self, groups: list[list[int]]) -> list[list[int]]:
        """The rows of these groups as micro-batches. Their number is a multiple of the number of ranks; some may be
        empty. Neighbours are of similar size, since different ranks compute them at the same time."""
        if self.budget < self.plan.budget:
            rows = [row for group in groups for row in group]
            lengths = [self.lengths[row] for row in rows]
            groups = [
                [rows[index] for index in group] for group in group_by_tokens(lengths, self.budget, padded=self.padded)
            ]
        ordered = sorted(groups, key=lambda group: (-self._count(group), group[:1]))
        return [*ordered, *([] for _ in range(-len(ordered) % self.world))]

    def _count(self, rows: list[int]) -> int:
        lengths = [self.lengths[row] for row in rows]
        return len(lengths) * max(lengths, default=0) if self.padded else sum(lengths)
