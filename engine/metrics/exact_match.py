"""Replies that equal their reference except for surrounding blanks."""

from __future__ import annotations

from collections.abc import Mapping

from engine.metrics import words
from engine.metrics.metric import Direction, Metric
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio


def tally(answer: Answer) -> Tally:
    if answer.reference is None:
        return {}
    return {"compared": 1, "same": words.normalize(answer.reply.strip()) == words.normalize(answer.reference.strip())}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`exact_match`: a share."""
    return {"exact_match": ratio(sums.get("same", 0), sums["compared"])}


METRIC = Metric({"exact_match": Direction.HIGHER}, metrics, tally)
