"""Prepared rows into micro-batches: a seeded order, cut into windows of one global batch, shared by the ranks.

The order of rows depends on seed and epoch alone, never on how a global batch is split. Each window is one optimiser step; the
last of an epoch holds what is left. Within a window rows are dealt by length, so that micro-batches pad little; as the loss is
a mean over the window's trained tokens, who computes which row changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

IGNORED = -100
"""Label of a token that is not trained."""


class Windows:
    """A batch sampler: for each window, `accumulation` lists of row numbers for this rank, some perhaps empty.

    `lengths` are the rows' lengths in tokens. Every rank gets the same number of lists, so that collectives pair up.
    """

    def __init__(
        self, lengths: Sequence[int], micro_batch: int, accumulation: int, rank: int, world: int, seed: int
    ) -> None:
        self.lengths = lengths
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.rank, self.world, self.seed = rank, world, seed
        self.epoch = 0

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world

    @property
    def per_epoch(self) -> int:
        """Windows, so optimiser steps, in an epoch."""
        return -(-len(self.lengths) // self.global_batch)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return self.per_epoch * self.accumulation

    def order(self, epoch: int) -> list[int]:
        """All row numbers as this epoch sees them."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        return shuffled

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for start in range(0, len(order), self.global_batch):
            window = order[start : start + self.global_batch]
            yield from self._share(window)[self.rank :: self.world]

    def _share(self, window: list[int]) -> list[list[int]]:
        """The window as accumulation × world micro-batches, neighbours (different ranks' at one time) of like length."""
        count = self.accumulation * self.world
        by_length = sorted(window, key=lambda row: (-self.lengths[row], row))
        bounds = [index * len(window) // count for index in range(count + 1)]
        return [by_length[bounds[index] : bounds[index + 1]] for index in range(count)]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """One micro-batch, padded on the right to its longest row.

    No attention mask: attention is causal, so nothing before the padding sees it, and no position after is trained.
    `picked` are flat positions (row × longest + column) whose next token is trained, `targets` those tokens. An empty
    micro-batch, the share of a rank that the last window had no row for, is one token that trains nothing.
    """
    longest = max((len(row["input_ids"]) for row in rows), default=1)
    ids = torch.zeros(max(len(rows), 1), longest, dtype=torch.long)
    following = torch.full((max(len(rows), 1), longest), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.as_tensor(row["input_ids"])
        following[index, : length - 1] = torch.as_tensor(row["labels"])[1:]
    flat = following.view(-1)
    picked = (flat != IGNORED).nonzero().squeeze(1)
    return {
        "input_ids": ids,
        "picked": picked,
        "targets": flat[picked],
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
    }
