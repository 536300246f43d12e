"""How long replies are."""

from __future__ import annotations

from collections.abc import Mapping

from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio


def tally(answer: Answer) -> Tally:
    counted = {} if answer.tokens is None else {"counted": 1, "tokens": answer.tokens}
    return {"replies": 1, "characters": len(answer.reply), **counted}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means: `reply_characters`, and `reply_tokens` of replies whose tokens are known."""
    found = {"reply_characters": ratio(sums.get("characters", 0), sums["replies"])}
    if sums.get("counted"):
        found["reply_tokens"] = sums["tokens"] / sums["counted"]
    return found
