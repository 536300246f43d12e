"""What tokenised rows consist of: the columns of each kind, batches of them, and the counts that describe a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from engine.prep.encoding import WIDTH
from engine.prep.formats.canonical import Canonical
from engine.prep.rows import Row

BATCH = 512
"""Rows encoded together: enough to make calls cheap, few enough to stream."""
MASKED = -100
"""The label of a token that the loss ignores."""
UNLIMITED = 2**31 - 1
"""A `max_length` that truncates nothing."""

PLAIN = ("input_ids", "labels")
COLUMNS = {
    "tokens": PLAIN,
    "pairs": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "judged": ("prompt_ids", "completion_ids", "label"),
    "prompts": ("prompt_ids", "prompt", "reference"),
}
"""Kind of rows, as a method's `Options.rows` names it -> the columns on disk. A `label` is 1 (good) or 0, in a list of
one."""
TEXTS = ("prompt", "reference")
"""Text columns with one value per row: a conversation as JSON (`messages` and, if any, `tools`), and the row's own
reply."""
JOINED = ("input_ids", "labels", "position_ids", "seq_lengths")
"""The columns of a set whose rows join several sequences."""

Columns = dict[str, tuple[Any, Any]]
"""Name -> (values of all rows end to end, number of values in each row)."""


class Tokens(NamedTuple):
    """A row as the model sees it: lists of equal length. `labels` are not shifted; the first is always masked, as
    nothing predicts it."""

    ids: list[int]
    labels: list[int]
    row: Row


class Batch(NamedTuple):
    """The sequences of a batch that were kept, as `token_store` writes them; `rows` are the indices of their rows in
    the batch."""

    columns: Columns
    rows: list[int]
    refused: dict[int, str]
    """Index in the batch -> why the row cannot be rendered."""

    def dropped(self, count: int, max_length: int) -> dict[int, tuple[str, bool]]:
        """Index among the `count` rows of the batch -> why nothing of the row is kept, and whether it was refused: one
        that is cut before a trained token is not a bad row."""
        kept = set(self.rows)
        reasons = {at: (reason, True) for at, reason in self.refused.items()}
        cut = f"cut at {max_length} tokens, before any that is trained"
        masked = (cut if max_length < UNLIMITED else "no token of it is trained", False)
        return {at: reasons.get(at, masked) for at in range(count) if at not in kept}


_TOTALS = ("rows", "tokens", "trained_tokens", "truncated", "masked", "ended")


@dataclass
class Counts:
    """What became of the rows of one part. Lengths are in tokens, after truncation."""

    rows: int = 0
    """Sequences: as many as rows, unless conversations are unrolled."""
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    masked: int = 0
    """Rows dropped because truncation left no trained token."""
    ended: int = 0
    """Rows in which an end-of-turn token is trained."""
    unwritten: Counter[str] = field(default_factory=Counter)
    """Rows with `tools`, `tool_calls` or `thoughts` that the template does not render, by what it leaves out."""
    turns: Counter[str] = field(default_factory=Counter)
    """Rows by the means that found their trained characters (see `rendered.Means`); an unrolled one may be several
    sequences, which `rows` counts."""
    misfits: Counter[str] = field(default_factory=Counter)
    """Rows of a kind that the method does not train on, by kind."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by length."""

    def add(self, other: Counts) -> None:
        for name in _TOTALS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("misfits", "unwritten", "turns", "lengths"):
            getattr(self, name).update(getattr(other, name))

    def take_unwritten(self, found: Counter[str]) -> None:
        """Add what a renderer has found, and clear it there."""
        self.unwritten.update({name: count for name, count in found.items() if count})
        found.clear()

    def to_json(self) -> dict[str, Any]:
        named = {name: dict(getattr(self, name)) for name in ("misfits", "unwritten", "turns")}
        return asdict(self) | named | {"lengths": sorted(self.lengths.items())}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Counts:
        named = {name: Counter(content[name]) for name in ("misfits", "unwritten", "turns")}
        return cls(**{**content, **named, "lengths": Counter(dict(content["lengths"]))})

    def summary(self) -> dict[str, Any]:
        totals: dict[str, Any] = {name: getattr(self, name) for name in _TOTALS}
        for name in ("unwritten", "turns"):
            totals[name] = dict(getattr(self, name))
        return totals | {
            name: percentile(self.lengths, share) for name, share in (("p50", 50), ("p95", 95), ("max", 100))
        }


class BatchTokenizer(Protocol):
    """Tokenises batches of canonical rows of one kind. An instance caches words and templates from batch to batch."""

    template: Any
    """The tokenizer's chat template; None without one."""

    def __call__(self, rows: Sequence[Canonical], counts: Counts) -> Batch:
        """The sequences of the rows that can be trained on, in order. Adds every row but the refused ones to
        `counts`."""

    def lengths(self, batch: Batch) -> tuple[Any, Any]:
        """Tokens of each row's sequences, an int32 array [rows, sequences], and the index of the first trained token in
        all of them, [rows]."""


def percentile(lengths: Counter[int], share: int) -> int:
    """The length at `share` percent of the rows in ascending order; 0 when there are no rows."""
    rows = sum(lengths.values())
    place, seen = min(rows - 1, rows * share // 100), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen > place:
            return length
    return 0


def id_column(parts: list[bytes]) -> tuple[Any, list[int]]:
    """A column made from the token ids of its rows, each int32 as bytes (see `encoding`)."""
    import numpy

    return numpy.frombuffer(b"".join(parts), dtype=numpy.int32), [len(part) // WIDTH for part in parts]
