"""A task that the tiny model learns in a few steps: replies of words below `w10`."""

from __future__ import annotations

from collections.abc import Mapping

from engine.tasks.direction import Direction
from engine.tasks.sufficient_stats import Tally
from engine.tasks.task import Messages, Task


def messages(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def tally(reply: str, reference: str | None) -> Tally:
    if not reference:
        raise ValueError("is empty")
    words = reply.split()
    low = sum(word[1:].isdigit() and int(word[1:]) < 10 for word in words)
    return {"replies": 1, "words": len(words), "low": low, "same": reply == reference}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`lows`: the share of such words; `same`: that of replies equal to their reference."""
    return {
        "lows": sums.get("low", 0) / max(sums.get("words", 0), 1),
        "same": sums.get("same", 0) / max(sums.get("replies", 0), 1),
    }


TASK = Task(
    messages=messages,
    schema={"type": "string"},
    parse=str.split,
    tally=tally,
    metrics=metrics,
    directions={"lows": Direction.HIGHER, "same": Direction.HIGHER},
    main="lows",
)
