"""Canonical rows to token ids and labels, in this process: batch by batch (`RowTokenizer`) or as a stream (`tokenize`).

The tokens are those of `apply_chat_template(tokenize=True)`. `tokenize_files` does the same over files, in many
processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engine.prep.chat_labels import Renderer
from engine.prep.encoding import WIDTH, EncodeRequest, choose_encoder, find_token
from engine.prep.formats.canonical import Canonical, kind_of
from engine.prep.rendered import Refusal, RenderedRow
from engine.prep.rows import Rejects, Row
from engine.prep.templates import ChatTokenizer, unwrap_tokenizer
from engine.prep.token_rows import BATCH, MASKED, Batch, BatchTokenizer, Counts
from engine.prep.tokenize_prompts import PromptTokenizer
from engine.prep.tokenize_replies import ReplyTokenizer


class RowTokenizer:
    """Tokenises conversations and plain text (see `BatchTokenizer`). Raises ValueError for a tokenizer that is pure
    Python."""

    def __init__(
        self, tokenizer: Any, loss_on: str, max_length: int, turns: str = "auto", thinking: str = "keep"
    ) -> None:
        chat = ChatTokenizer.of(tokenizer)
        self._renderer = Renderer(chat, loss_on, turns, thinking)
        self._encoder = choose_encoder(unwrap_tokenizer(chat))
        self._max_length = max_length
        self.template = chat.chat_template

    def __call__(self, rows: Sequence[Canonical], counts: Counts) -> Batch:
        """The sequences of the rows that can be trained on, in order. Adds every row but the refused ones to
        `counts`."""
        rendered = self._renderer.render(rows)
        counts.misfits.update(kind for row in rows if (kind := kind_of(row)) != "tokens")
        counts.take_unwritten(self._renderer.unwritten)
        refused = {at: result.reason for at, result in enumerate(rendered) if isinstance(result, Refusal)}
        kept = []
        for at, result in enumerate(rendered):
            if not isinstance(result, Refusal):
                counts.turns[result.means] += 1
                kept += [(at, sequence) for sequence in result.sequences]
        marks = [_marks(result) for _, result in kept]
        requests = [
            EncodeRequest(result.text, mark, result.special) for (_, result), mark in zip(kept, marks, strict=True)
        ]
        parts, lengths, numbers = [], [], []
        bounds: list[tuple[int, int]] = []
        total = 0
        for (at, sequence), mark, encoded in zip(kept, marks, self._encoder.encode(requests), strict=True):
            whole = len(encoded.ids) // WIDTH
            length = min(whole, self._max_length)
            counts.truncated += whole > length
            place = dict(zip(mark, encoded.places, strict=True))
            trained = [
                (first, last)
                for start, end in sequence.spans
                if (first := max(1, place[start])) < (last := min(length, place[end]))
            ]
            if not trained:
                counts.masked += 1
                continue
            bounds += [(total + first, total + last) for first, last in trained]
            parts.append(encoded.ids if length == whole else encoded.ids[: length * WIDTH])
            lengths.append(length)
            numbers.append(at)
            total += length
            counts.trained_tokens += sum(last - first for first, last in trained)
            counts.ended += any(first <= place[end - 1] < last for end in sequence.ends for first, last in trained)
        counts.rows += len(lengths)
        counts.tokens += total
        counts.lengths.update(lengths)
        ids, labels = _arrays(parts, bounds, total)
        return Batch({"input_ids": (ids, lengths), "labels": (labels, lengths)}, numbers, refused)

    def lengths(self, batch: Batch) -> tuple[Any, Any]:
        """Tokens of each row, int32 [rows, 1], and the index of its first trained token, int32 [rows]."""
        import numpy

        labels, counted = batch.columns["labels"]
        lengths = numpy.array(counted, dtype=numpy.int32)
        starts = numpy.cumsum(lengths) - lengths
        places = numpy.flatnonzero(labels != MASKED)
        first = places[numpy.searchsorted(places, starts)] - starts if len(starts) else starts
        return lengths[:, None], first.astype(numpy.int32)


def _marks(rendered: RenderedRow) -> list[int]:
    """The characters whose tokens are needed: the bounds of spans, and the last characters of end-of-turn tokens."""
    return sorted({*itertools.chain.from_iterable(rendered.spans), *(end - 1 for end in rendered.ends)})


def _arrays(parts: list[bytes], bounds: list[tuple[int, int]], total: int) -> tuple[Any, Any]:
    """All ids, and labels that are trained within `bounds`, which do not overlap and are not empty."""
    import numpy

    ids = numpy.frombuffer(b"".join(parts), dtype=numpy.int32)
    step = numpy.zeros(total + 1, dtype=numpy.int8)
    if bounds:
        starts, ends = numpy.array(bounds).T
        step[starts] += 1
        step[ends] -= 1
    return ids, numpy.where(numpy.cumsum(step[:-1], dtype=numpy.int8) > 0, ids, numpy.int32(MASKED))


def make_row_tokenizer(
    kind: str,
    tokenizer: Any,
    loss_on: str,
    max_length: int,
    max_prompt: int | None = None,
    task: str | None = None,
    turns: str = "auto",
    thinking: str = "keep",
) -> BatchTokenizer:
    """What tokenises rows of this kind (a method's `Options.rows`). `task` names the task whose answers the references
    of prompts must be; `turns` and `thinking` are `data.turns` and `data.thinking`. Raises ValueError for a tokenizer
    that is pure Python."""
    if kind == "tokens":
        return RowTokenizer(tokenizer, loss_on, max_length, turns, thinking)
    if kind == "prompts":
        return PromptTokenizer(tokenizer, max_length, max_prompt, task)
    return ReplyTokenizer(tokenizer, kind, max_length, max_prompt, thinking)


# ── a stream ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tokenize(
    rows: Iterable[Row], tokenizing: BatchTokenizer, rejects: Rejects, counts: Counts
) -> Iterator[tuple[Row, dict[str, list[Any]]]]:
    """The rows that can be trained on, with their columns, in order. All rows are counted; those that cannot be
    rendered are rejected."""
    stream = iter(rows)
    while some := list(itertools.islice(stream, BATCH)):
        batch = tokenizing([row.content for row in some], counts)
        for at, reason in batch.refused.items():
            rejects.add(some[at].file, some[at].line, some[at].offset, reason)
        begins = dict.fromkeys(batch.columns, 0)
        for number, at in enumerate(batch.rows):
            columns = {}
            for name, (values, lengths) in batch.columns.items():
                some_values = values[begins[name] : begins[name] + lengths[number]]
                columns[name] = [value if isinstance(value, str) else int(value) for value in some_values]
                begins[name] += lengths[number]
            yield some[at], columns


def encode(rendered: list[RenderedRow], encoder: Any) -> Iterator[Any]:
    """The `tokenizers.Encoding`s with offsets, in order. Neighbours that treat special tokens alike are encoded
    together."""
    for special, group in itertools.groupby(rendered, key=lambda each: each.special):
        yield from encoder.encode_batch([each.text for each in group], add_special_tokens=special)


def label(rendered: RenderedRow, encoding: Any) -> list[int]:
    """The labels of all tokens. A token that begins before a span and ends inside it is trained too, as in
    transformers' assistant masks."""
    ids: list[int] = encoding.ids
    labels = [MASKED] * len(ids)
    for start, end in rendered.spans:
        first, last = (find_token(encoding, place, len(rendered.text)) for place in (start, end))
        labels[first:last] = ids[first:last]
    if labels:
        labels[0] = MASKED
    return labels
