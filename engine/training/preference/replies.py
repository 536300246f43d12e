"""Common parts of the methods that compare replies: sequences of a prompt and a reply, and their log-probabilities.

A preference row is several sequences: its prompt with each of its replies. The model processes them like supervised
rows (concatenated without padding where attention can be kept within segments, with the output layer only at the
replies' positions), and each results in one log-probability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.models.loss import PickedHead, token_losses
from engine.models.segments import Segments
from engine.prep.batching import collate_flat, collate_padded
from engine.prep.token_rows import MASKED
from engine.protocol.journal import Warn
from engine.training.dropout import PooledDropout
from engine.training.methods.base import Batch, Method, MethodSetup

Row = dict[str, list[int]]


def make_sequence(prompt: list[int], reply: list[int], whole: bool = False) -> Row:
    """Ids and labels of a prompt with a reply: the reply's tokens have labels; with `whole`, the prompt's too."""
    return {"input_ids": prompt + reply, "labels": (prompt if whole else [MASKED] * len(prompt)) + reply}


def collate_sequences(rows: list[Row], flat: bool) -> dict[str, Any]:
    """`batching.collate_flat` or `collate_padded`, plus `counts`: the number of labelled tokens of each sequence, never
    counting its first."""
    collated = (collate_flat if flat else collate_padded)(rows)
    del collated["rows"]
    return collated | {"counts": [sum(label != MASKED for label in row["labels"][1:]) for row in rows]}


def collate_pairs(rows: list[Row], flat: bool) -> dict[str, Any]:
    """All chosen sequences, then all rejected ones, in trl's order. `pairs` is the number of rows."""
    sequences = [make_sequence(row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
    return collate_sequences(sequences, flat) | {"pairs": len(rows), "rows": len(rows)}


class ReplyMethod(Method):
    """A method whose loss is computed from the log-probabilities of replies."""

    def __init__(self, setup: MethodSetup) -> None:
        disable_dropout(setup)
        super().__init__(setup)
        self.flat = setup.segments is not None
        self.early = self.profile.training.optimizations
        self.head = PickedHead(self.model, setup.segments or Segments(), self.early, self.device.autocast)

    def units(self, batch: Batch) -> float:
        return int(batch["pairs"])

    def expect_plain_batches(self) -> None:
        self.head.segments.lengths = None

    def token_log_probs(self, head: PickedHead, model: Any, batch: Batch) -> Any:
        """[labelled tokens], float32: the log-probability of each token."""
        (losses,) = head.compute(model, batch, lambda logits, targets: (token_losses(logits, targets),))
        return -losses


def sum_sequences(values: Any, counts: list[int]) -> Any:
    """[sequences]: sums of the concatenated `values`, of which each sequence has its number in `counts`."""
    # Not index_add, whose order of additions varies on a GPU.
    return torch.stack([part.sum() for part in values.split(counts)]) if counts else values[:0]


def disable_dropout(setup: MethodSetup) -> None:
    """Disable dropout, as trl does: it would add noise to the difference between two passes."""
    for name, module in list(setup.model.named_modules()):
        if isinstance(module, nn.Dropout | PooledDropout) and ".lora_dropout." in name:
            setup.model.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    job = setup.job
    if getattr(job.profile.adapter, "dropout", 0.0):
        kind = job.profile.method.kind
        job.reporter.write(
            Warn(
                code="adapter.dropout_ignored",
                attempt=job.attempt,
                message=f"adapter.dropout is ignored: {kind} compares replies, and dropout would add noise",
                hint="nothing to do; adapter.dropout=0 avoids this warning",
            )
        )
