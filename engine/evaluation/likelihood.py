"""A model's loss on each row: what evaluation during training sums up, from a model loaded for inference.

Rows are tokenised and labelled as in a run, and only the trained positions go through the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from engine.evaluation.dataset import EvaluationSet
from engine.metrics import tokens
from engine.models.loss import PickedHead, token_losses
from engine.models.template_metadata import choose_template
from engine.prep.formats.canonical import Canonical
from engine.tasks.sufficient_stats import Tally

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included."""
LONGEST = 8192
"""Longest row in tokens, whatever the model's context: memory grows with it."""

Row = dict[str, list[int]]


def tokenize_rows(
    dataset: EvaluationSet, loaded: LoadedModel, loss_on: str, max_length: int | None
) -> tuple[dict[int, list[Row]], dict[str, int]]:
    """`input_ids` and `labels` of each row's sequences by row number; and how many sequences were `truncated` or
    `masked` (without a trained token), and how many rows `refused`."""
    if dataset.tokens is not None:
        prepared = [[row] for row in _read_prepared(dataset)]
        if len(prepared) == len(dataset.rows):  # else conversations have become several sequences each
            return dict(enumerate(prepared)), {}
    from engine.prep.token_rows import Counts
    from engine.prep.tokenize import RowTokenizer

    counts = Counts()
    tokenizing = RowTokenizer(loaded.tokenizer, loss_on, min(max_length or LONGEST, loaded.context))
    found: dict[int, list[Row]] = {}
    refused = 0
    for start in range(0, len(dataset.rows), 512):
        batch = tokenizing(dataset.rows[start : start + 512], counts)
        refused += len(batch.refused)
        ids, lengths = batch.columns["input_ids"]
        labels, _ = batch.columns["labels"]
        at = 0
        for place, length in zip(batch.rows, lengths, strict=True):
            row = {"input_ids": ids[at : at + length].tolist(), "labels": labels[at : at + length].tolist()}
            found.setdefault(start + place, []).append(row)
            at += length
    return found, {"truncated": counts.truncated, "masked": counts.masked, "refused": refused}


def _read_prepared(dataset: EvaluationSet) -> Iterator[Row]:
    """The rows that a run has prepared; rows that share a sequence are separated."""
    from datasets import load_from_disk

    for row in load_from_disk(str(dataset.tokens)):
        at = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            yield {name: row[name][at : at + length] for name in ("input_ids", "labels")}
            at += length


def can_render(rows: Sequence[Canonical], tokenizer: Any) -> bool:
    """Whether the rows can be tokenised: conversations need a chat template, plain text does not."""
    return bool(choose_template(tokenizer.chat_template)) or all("text" in row for row in rows)


def measure_losses(
    model: Any, rows: dict[int, list[Row]], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[dict[int, Tally]]:
    """The tallies of rows, a batch at a time, the shortest sequences first. `model` is in eval mode. `progress` gets
    (rows done, rows in all)."""
    import torch

    from engine.models.segments import Segments
    from engine.prep.batching import collate_padded

    head = PickedHead(model, Segments())
    sequences = [(number, sequence) for number, row in rows.items() for sequence in row]
    sequences.sort(key=lambda each: len(each[1]["input_ids"]))
    left = {number: len(row) for number, row in rows.items()}
    sums_of = dict.fromkeys(rows, (0, 0.0, 0))
    done = 0
    for places_of in _batches(range(len(sequences)), [len(sequence["input_ids"]) for _, sequence in sequences]):
        together = [sequences[place] for place in places_of]
        batch = collate_padded([sequence for _, sequence in together])
        longest = batch["input_ids"].shape[1]
        places = (batch["picked"] // longest).to(model.device)
        moved = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        with torch.no_grad(), _autocast(model):
            values, right = head.compute(model, moved, _measure)
        sums = torch.zeros(3, len(together), dtype=torch.float64, device=values.device)
        for line, each in zip(sums, (torch.ones_like(values), values, right), strict=True):
            line.index_add_(0, places, each.double())
        finished = {}
        for (number, _), units, loss, hits in zip(together, *sums.tolist(), strict=True):
            before = sums_of[number]
            sums_of[number] = before[0] + int(units), before[1] + loss, before[2] + int(hits)
            left[number] -= 1
            if not left[number]:
                finished[number] = tokens.tally(*sums_of[number])
        done += len(finished)
        progress(done, len(rows))
        yield finished


def _measure(logits: Any, targets: Any) -> tuple[Any, Any]:
    """The loss of each position, and 1 where the likeliest token is the right one."""
    losses = token_losses(logits, targets)
    return losses, (logits.argmax(-1) == targets).to(losses.dtype)


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive rows, as many as fit into `BATCH_TOKENS` when padded; `lengths` ascend."""
    some: list[int] = []
    for number, length in zip(order, lengths, strict=True):
        if some and (len(some) + 1) * length > BATCH_TOKENS:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def _autocast(model: Any) -> Any:
    """As in training: computing in 16 bits if the weights have 16 bits."""
    import torch

    dtype = model.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)
