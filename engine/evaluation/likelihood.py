"""A model's loss on rows, each by itself: the numbers that training's evaluation sums up, from a model that is loaded to talk.

Rows and their labels come from the same tokenising as a run's, and the trained positions alone go through the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from engine.evaluation.dataset import Material
from engine.evaluation.metrics import tokens
from engine.prep.formats.canonical import Canonical
from engine.tasks.sufficient_stats import Tally

if TYPE_CHECKING:
    from engine.inference.loaded_model import Loaded

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included."""
LONGEST = 8192
"""Tokens of a row, of a model that could read more: memory grows with it."""

Row = dict[str, list[int]]


def tokenised(
    material: Material, loaded: Loaded, loss_on: str, max_length: int | None
) -> tuple[dict[int, Row], dict[str, int]]:
    """Row number -> `input_ids` and `labels`; and how many rows were `truncated`, `masked` (nothing of them is trained) or `refused`."""
    if material.tokens is not None:
        return dict(enumerate(_prepared(material))), {}
    from engine.prep.token_rows import Counts
    from engine.prep.tokenize import RowTokenizer

    counts = Counts()
    tokenizing = RowTokenizer(loaded.tokenizer, loss_on, min(max_length or LONGEST, loaded.context))
    found: dict[int, Row] = {}
    refused = 0
    for start in range(0, len(material.rows), 512):
        batch = tokenizing(material.rows[start : start + 512], counts)
        refused += len(batch.refused)
        ids, lengths = batch.columns["input_ids"]
        labels, _ = batch.columns["labels"]
        at = 0
        for place, length in zip(batch.rows, lengths, strict=True):
            found[start + place] = {
                "input_ids": ids[at : at + length].tolist(),
                "labels": labels[at : at + length].tolist(),
            }
            at += length
    return found, {"truncated": counts.truncated, "masked": counts.masked, "refused": refused}


def _prepared(material: Material) -> Iterator[Row]:
    """What a run was evaluated on, row by row; rows that share a sequence are taken apart."""
    from datasets import load_from_disk

    for row in load_from_disk(str(material.tokens)):
        at = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            yield {name: row[name][at : at + length] for name in ("input_ids", "labels")}
            at += length


def can_render(rows: Sequence[Canonical], tokenizer: Any) -> bool:
    """Conversations need a chat template; plain text does not."""
    return bool(tokenizer.chat_template) or all("text" in row for row in rows)


def losses(
    model: Any, rows: dict[int, Row], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[dict[int, Tally]]:
    """The tallies of rows, a batch at a time, the shortest rows first. `model` is in eval mode and stays as it is."""
    import torch

    from engine.models.loss import PickedHead
    from engine.models.segments import Segments
    from engine.prep.batching import collate_padded

    head = PickedHead(model, Segments())
    order = sorted(rows, key=lambda number: len(rows[number]["input_ids"]))
    done = 0
    for together in _batches(order, [len(rows[number]["input_ids"]) for number in order]):
        batch = collate_padded([rows[number] for number in together])
        longest = batch["input_ids"].shape[1]
        places = (batch["picked"] // longest).to(model.device)
        moved = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        with torch.no_grad(), _autocast(model):
            logits = head.logits(model, moved).float()
        values = torch.nn.functional.cross_entropy(logits, moved["targets"], reduction="none")
        right = (logits.argmax(-1) == moved["targets"]).to(values.dtype)
        sums = torch.zeros(3, len(together), dtype=torch.float64, device=values.device)
        for line, each in zip(sums, (torch.ones_like(values), values, right), strict=True):
            line.index_add_(0, places, each.double())
        units, loss, hits = sums.tolist()
        done += len(together)
        progress(done, len(order))
        yield {
            number: tokens.tally(int(units[place]), loss[place], int(hits[place]))
            for place, number in enumerate(together)
        }


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours, as many as `BATCH_TOKENS` hold; `lengths` ascend."""
    some: list[int] = []
    for number, length in zip(order, lengths, strict=True):
        if some and (len(some) + 1) * length > BATCH_TOKENS:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def _autocast(model: Any) -> Any:
    """Training computes in 16 bits where the weights have them."""
    import torch

    dtype = model.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)
