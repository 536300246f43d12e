"""How much a reply repeats itself: the share of its sequences of `N` words that occurred before in it.

It is one minus the share of distinct sequences (Li et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.metrics.metric import Direction, Metric
from engine.metrics.words import words
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio

N = 4


def tally(answer: Answer) -> Tally:
    text = words(answer.reply)
    sequences = [tuple(text[start : start + N]) for start in range(len(text) - N + 1)]
    again = 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
    return {"replies": 1, "again": again}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`repetition`: the mean over replies, 0…1; a reply shorter than `N` words has 0."""
    return {"repetition": ratio(sums.get("again", 0), sums["replies"])}


METRIC = Metric({"repetition": Direction.LOWER}, metrics, tally)
