"""Prepared rows to micro-batches: a seeded order, cut into global batches, which the ranks share.

The order of rows depends on seed and epoch alone, never on how a global batch is split. Each global batch is one
optimiser step; the last of an epoch holds the remaining rows. Within a global batch, rows of similar length share a
micro-batch, which keeps padding low. The loss is a mean over all trained tokens of the global batch, so it does not
matter which rank computes which row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from engine.prep.token_rows import MASKED

Collate = Callable[[list[dict[str, list[int]]]], dict[str, Any]]
"""Turns the rows of one micro-batch into tensors."""


def token_counts(rows: Any) -> list[int]:
    """Tokens of each row of an Arrow set, computed from the columns' offsets without reading their content.

    A preference row counts the tokens of all its sequences, because the model reads the prompt once with each reply.
    """
    from pyarrow import compute

    def lengths(name: str) -> Any:
        return compute.list_value_length(rows.data.column(name)).to_numpy()

    if "input_ids" in rows.column_names:
        counts = lengths("input_ids")
    else:
        replies = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in rows.column_names]
        counts = sum(lengths("prompt_ids") + lengths(name) for name in replies) if replies else lengths("prompt_ids")
    found: list[int] = counts.tolist()
    return found


class GlobalBatches:
    """A batch sampler: for each global batch, `accumulation` lists of row numbers for this rank, some perhaps empty.

    `lengths` are the rows' lengths in tokens. Every rank gets the same number of lists, so that collective operations
    match.
    """

    def __init__(
        self, lengths: Sequence[int], micro_batch: int, accumulation: int, rank: int, world: int, seed: int
    ) -> None:
        self.lengths = lengths
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.rank, self.world, self.seed = rank, world, seed
        self.step = 0
        """Iteration starts with the global batch that follows this many steps, and ends with its epoch."""
        self.skipped: Collection[int] = ()
        """Rows that are left out of their global batches; all other rows stay in theirs."""

    @property
    def size(self) -> int:
        """Rows in a global batch."""
        return self.micro_batch * self.accumulation * self.world

    @property
    def per_epoch(self) -> int:
        """Global batches, that is optimiser steps, in an epoch."""
        return -(-len(self.lengths) // self.size)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return self.per_epoch * self.accumulation

    def count_micro_batches(self, step: int) -> int:
        """Micro-batches of each rank in the global batch that follows after `step` steps."""
        return self.accumulation

    def pick_longest(self) -> list[int]:
        """The rows of a micro-batch that takes as much memory as any."""
        kept = (row for row in range(len(self.lengths)) if row not in self.skipped)
        return sorted(kept, key=lambda row: (-self.lengths[row], row))[: self.micro_batch]

    def order(self, epoch: int) -> list[int]:
        """All row numbers in the order of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        return shuffled

    def rows_of(self, step: int) -> list[int]:
        """Row numbers of the global batch that follows after `step` steps, skipped rows included, in its epoch's
        order."""
        epoch, index = divmod(step, self.per_epoch)
        return self.order(epoch)[index * self.size : (index + 1) * self.size]

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.step, self.per_epoch)
        order = self.order(epoch)
        for start in range(first * self.size, len(order), self.size):
            yield from self._divide(order[start : start + self.size])[self.rank :: self.world]

    def group_held_out(self, lengths: Sequence[int]) -> list[list[int]]:
        """Held-out rows of these lengths, the shortest first, as micro-batches. They are twice as large as those of
        training: no activations are kept for a backward pass."""
        size = 2 * self.micro_batch
        return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]

    def _by_length(self, rows: list[int]) -> list[int]:
        kept = [row for row in rows if row not in self.skipped]
        return sorted(kept, key=lambda row: (-self.lengths[row], row))

    def _divide(self, rows: list[int]) -> list[list[int]]:
        """The global batch as accumulation × world micro-batches. Neighbours, which different ranks compute at the same
        time, are of similar length."""
        count = self.accumulation * self.world
        by_length = self._by_length(rows)
        bounds = [index * len(by_length) // count for index in range(count + 1)]
        return [by_length[bounds[index] : bounds[index + 1]] for index in range(count)]


def collate_flat(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """A micro-batch as one sequence of concatenated rows, [1, tokens], without padding.

    `lengths` are the lengths of the parts that attend only to themselves: rows, or the sequences in a packed row
    (`seq_lengths`). `picked` are the positions whose next token is trained, `targets` those tokens, `trained` their
    number in each part. An empty micro-batch, which a rank gets if the last global batch has no row for it, is one
    token that trains nothing.
    """
    lengths = [length for row in rows for length in row.get("seq_lengths") or [len(row["input_ids"])]] or [1]
    ids = torch.tensor([token for row in rows for token in row["input_ids"]] or [0])
    labels = torch.tensor([label for row in rows for label in row["labels"]] or [MASKED])
    following = torch.cat([labels[1:], labels.new_tensor([MASKED])])
    ends = torch.tensor(lengths).cumsum(0)
    following[ends - 1] = MASKED  # the last token of a part has nothing to predict
    picked = (following != MASKED).nonzero().squeeze(1)
    before = torch.searchsorted(picked, ends)
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "lengths": lengths,
        "picked": picked,
        "targets": following[picked],
        "trained": torch.diff(before, prepend=before.new_zeros(1)).tolist(),
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
    }


def collate_padded(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """As `collate_flat`, but padded on the right to the longest row, for models whose attention cannot be cut into
    segments.

    There is no attention mask: attention is causal, so no token before the padding sees it, and none after it is
    trained. `picked` are flat positions (row × longest + column).
    """
    flat = collate_flat(rows)
    if "seq_lengths" in (rows[0] if rows else {}):
        raise ValueError("packed rows cannot be padded: a row would attend to the one before it")
    ids = torch.nn.utils.rnn.pad_sequence(flat["input_ids"][0].split(flat["lengths"]), batch_first=True)
    starts = torch.tensor([0, *flat["lengths"][:-1]]).cumsum(0)
    row = torch.searchsorted(starts, flat["picked"], right=True) - 1
    picked = row * ids.shape[1] + flat["picked"] - starts[row]
    others = {key: flat[key] for key in ("targets", "trained", "rows", "tokens")}
    return {"input_ids": ids, "picked": picked, "lengths": None, "position_ids": None, **others}
