"""A task that the tiny model learns in a few steps: replies of words below `w10`. As modules in `engine.evaluation` are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def concerns(columns: Mapping[str, Any]) -> bool:
    return True


def score(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`lows`: the share of such words; `same`: that of replies equal to their reference. Raises ValueError for an empty reference."""
    if not all(references):
        raise ValueError("a reference is empty")
    words = [word for reply in replies for word in reply.split()]
    low = sum(word[1:].isdigit() and int(word[1:]) < 10 for word in words)
    same = sum(reply == reference for reply, reference in zip(replies, references, strict=True))
    return {"lows": low / max(len(words), 1), "same": same / max(len(replies), 1)}
