"""Replies that did not end with a stop token."""

from __future__ import annotations

from collections.abc import Mapping

from engine.metrics.metric import Direction, Metric
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio


def tally(answer: Answer) -> Tally:
    return {} if answer.stopped is None else {"known": 1, "endless": not answer.stopped}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`no_stop_rate`: the share of replies that reached the longest length without a stop token."""
    return {"no_stop_rate": ratio(sums.get("endless", 0), sums["known"])}


METRIC = Metric({"no_stop_rate": Direction.LOWER}, metrics, tally)
