"""Replies that were sampled for training, and their division into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.training.methods.base import Batch
from engine.training.preference.replies import collate_sequences, make_sequence


@dataclass
class Rollout:
    """A sampled reply. Its per-token values are [tokens of the reply], float32, on the CPU."""

    prompt: list[int]
    reply: list[int]
    """Token ids, including the one that ended the reply, if one did."""
    ended: bool
    advantage: float = 0.0
    old: Any = None
    """Log-probabilities by the sampling model; None where those of the step itself are the same."""
    reference: Any = None
    """Log-probabilities by the reference; None without one."""


def divide(rollouts: Sequence[Rollout], count: int) -> list[list[Rollout]]:
    """Divide into `count` micro-batches of similar lengths; some may be empty."""
    by_length = sorted(rollouts, key=lambda each: -(len(each.prompt) + len(each.reply)))
    bounds = [index * len(by_length) // count for index in range(count + 1)]
    return [by_length[bounds[index] : bounds[index + 1]] for index in range(count)]


def collate(rollouts: Sequence[Rollout], flat: bool, mask_truncated: bool) -> Batch:
    """A micro-batch: `collate_sequences` with `advantages` and `learnt` (1, or 0 for a masked reply), [replies],
    `learnt_tokens`, the number of tokens of the replies that are not masked, and `old` and `reference`, [tokens], or
    None where the replies have none. There may be no replies: a rank has none in a short global batch."""
    batch = collate_sequences([make_sequence(each.prompt, each.reply) for each in rollouts], flat)
    del batch["tokens"]
    batch["advantages"] = torch.tensor([each.advantage for each in rollouts])
    learnt = [each.ended or not mask_truncated for each in rollouts]
    batch["learnt"] = torch.tensor(list(map(float, learnt)))
    batch["learnt_tokens"] = sum(count for count, counts in zip(batch["counts"], learnt, strict=True) if counts)
    for name in ("old", "reference"):
        values = [getattr(each, name) for each in rollouts]
        batch[name] = None if values and values[0] is None else torch.cat([torch.zeros(0), *values])
    return batch
