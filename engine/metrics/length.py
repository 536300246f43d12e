"""How long replies are."""

from __future__ import annotations

from collections.abc import Mapping

from engine.metrics.metric import Direction, Metric
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio


def tally(answer: Answer) -> Tally:
    counted = {} if answer.tokens is None else {"counted": 1, "tokens": answer.tokens}
    return {"replies": 1, "characters": len(answer.reply), **counted}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means: `reply_characters`, and `reply_tokens` of replies whose number of tokens is known."""
    values = {"reply_characters": ratio(sums.get("characters", 0), sums["replies"])}
    if sums.get("counted"):
        values["reply_tokens"] = sums["tokens"] / sums["counted"]
    return values


METRIC = Metric(dict.fromkeys(("reply_characters", "reply_tokens"), Direction.NEITHER), metrics, tally)
