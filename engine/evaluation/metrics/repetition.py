"""How much of a reply it has said before: the share of its sequences of `N` words that are not distinct (Li et al. 2016 count the others)."""

from __future__ import annotations

from collections.abc import Mapping

from engine.evaluation.metrics.words import words
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio

N = 4


def tally(answer: Answer) -> Tally:
    said = words(answer.reply)
    sequences = [tuple(said[start : start + N]) for start in range(len(said) - N + 1)]
    again = 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
    return {"replies": 1, "again": again}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`repetition`: the replies' mean, 0…1; a reply shorter than `N` words repeats nothing."""
    return {"repetition": ratio(sums.get("again", 0), sums["replies"])}
