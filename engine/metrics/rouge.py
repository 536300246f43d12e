"""ROUGE-L (Lin 2004): the longest common subsequence of words, by the `rouge_score` library.

The library's own tokenizer keeps ASCII alone, so Chinese text would be empty; it is given ours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from engine.metrics import words
from engine.metrics.metric import Direction, Metric
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words.words(text)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def tally(answer: Answer) -> Tally:
    if answer.reference is None:
        return {}
    score = _scorer().score(answer.reference, answer.reply)["rougeL"].fmeasure
    return {"compared": 1, "rouge_l": float(score)}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`rouge_l`: the mean F-measure, 0…1."""
    return {"rouge_l": ratio(sums.get("rouge_l", 0), sums["compared"])}


METRIC = Metric({"rouge_l": Direction.HIGHER}, metrics, tally)
