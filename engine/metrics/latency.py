"""How long replies took."""

from __future__ import annotations

from collections.abc import Mapping

from engine.metrics.metric import Direction, Metric
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio


def tally(answer: Answer) -> Tally:
    return {} if answer.seconds is None else {"timed": 1, "seconds": answer.seconds}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`latency`: mean seconds from the request to the last token, generated in a batch with other replies."""
    return {"latency": ratio(sums.get("seconds", 0), sums["timed"])}


METRIC = Metric({"latency": Direction.LOWER}, metrics, tally)
