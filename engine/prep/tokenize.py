"""Canonical rows to token ids and labels, in batches through the bare fast tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.prep.chat import Refused, Rendered, Renderer
from engine.prep.rows import Rejects, Row

BATCH = 512
"""Rows encoded together: enough to keep the tokenizer's threads busy, small enough to stream."""
MASKED = -100
"""The label that no loss counts."""


class Tokens(NamedTuple):
    """A row as the model sees it: equally long lists. `labels` are unshifted; the first is always masked (nothing predicts it)."""

    ids: list[int]
    labels: list[int]
    row: Row


@dataclass
class Counts:
    """What became of the rows of one part. Lengths in tokens, after truncation."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    masked: int = 0
    """Rows dropped because truncation left no trained token."""
    ended: int = 0
    """Rows in which an end-of-turn token is trained."""
    lengths: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, int]:
        ordered = sorted(self.lengths)
        at = {
            name: ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else 0
            for name, share in (("p50", 50), ("p95", 95), ("max", 100))
        }
        return {
            name: getattr(self, name) for name in ("rows", "tokens", "trained_tokens", "truncated", "masked", "ended")
        } | at


def tokenize(
    rows: Iterable[Row], tokenizer: Any, loss_on: str, max_length: int, rejects: Rejects, counts: Counts
) -> Iterator[Tokens]:
    """The rows that can be trained on, in order; the others are counted, those that no template renders also rejected."""
    renderer = Renderer(tokenizer, loss_on)
    encoder = bare(tokenizer)
    stream = iter(rows)
    while batch := list(itertools.islice(stream, BATCH)):
        rendered = renderer.render([row.content for row in batch])
        kept = []
        for row, result in zip(batch, rendered, strict=True):
            if isinstance(result, Refused):
                rejects.add(row.file, row.line, row.offset, result.reason)
            else:
                kept.append((row, result))
        for (row, result), encoding in zip(kept, encode([result for _, result in kept], encoder), strict=True):
            tokens = _cut(row, result, encoding, max_length, counts)
            if tokens:
                yield tokens


def bare(tokenizer: Any) -> Any:
    """The Rust tokenizer inside, set neither to cut nor to pad. Raises ValueError for one that is pure Python."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: its folder needs a tokenizer.json")
    encoder = tokenizer.backend_tokenizer
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def encode(rendered: list[Rendered], encoder: Any) -> Iterator[Any]:
    """`tokenizers.Encoding`s in order; neighbours that treat special tokens alike go together."""
    for special, group in itertools.groupby(rendered, key=lambda each: each.special):
        yield from encoder.encode_batch([each.text for each in group], add_special_tokens=special)


def label(rendered: Rendered, encoding: Any) -> list[int]:
    """Labels of all tokens. A token that only ends inside a span is trained too, as in transformers' own assistant masks."""
    ids: list[int] = encoding.ids
    labels = [MASKED] * len(ids)
    for start, end in rendered.spans:
        first, last = (_token_at(encoding, place, len(rendered.text)) for place in (start, end))
        labels[first:last] = ids[first:last]
    if labels:
        labels[0] = MASKED
    return labels


def _token_at(encoding: Any, position: int, length: int) -> int:
    """The token that holds the character, or the next that holds any (tokenizers may skip blanks); behind the last at the end."""
    found = (encoding.char_to_token(at) for at in range(position, length))
    return next((token for token in found if token is not None), len(encoding.ids))


def _cut(row: Row, rendered: Rendered, encoding: Any, max_length: int, counts: Counts) -> Tokens | None:
    """The row at no more than `max_length` tokens, counted; None when nothing of it is trained."""
    ids, labels = encoding.ids[:max_length], label(rendered, encoding)[:max_length]
    counts.truncated += len(encoding.ids) > max_length
    trained = sum(each != MASKED for each in labels)
    if not trained:
        counts.masked += 1
        return None
    counts.rows += 1
    counts.tokens += len(ids)
    counts.trained_tokens += trained
    counts.lengths.append(len(ids))
    ends = (encoding.char_to_token(end - 1) for end in rendered.ends)
    counts.ended += any(at is not None and at < len(ids) and labels[at] != MASKED for at in ends)
    return Tokens(ids, labels, row)
