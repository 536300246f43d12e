"""BLEU (Papineni et al. 2002) over all replies, by the `sacrebleu` library: Chinese with its `zh` tokenizer, Japanese
by character."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from engine.metrics import words
from engine.metrics.metric import Direction, Metric
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally

ORDER = 4
_TOKENIZERS = {"": "13a", "zh": "zh", "ja": "char"}


@functools.cache
def _scorer(tokenizer: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)  # only the counts of single replies are read


def tally(answer: Answer) -> Tally:
    """What sacrebleu counts in one reply: n-grams shared with the reference and n-grams in all, by n, and the
    lengths."""
    if answer.reference is None:
        return {}
    scorer = _scorer(_TOKENIZERS[words.script(answer.reference)])
    found = scorer.sentence_score(words.normalize(answer.reply), [words.normalize(answer.reference)])
    counts = {f"right_{n}": float(found.counts[n - 1]) for n in range(1, ORDER + 1)}
    totals = {f"total_{n}": float(found.totals[n - 1]) for n in range(1, ORDER + 1)}
    return {"compared": 1, **counts, **totals, "length": found.sys_len, "wanted": found.ref_len}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`bleu`: 0…100, sacrebleu's scale."""
    from sacrebleu.metrics.bleu import BLEU

    right = [int(sums.get(f"right_{n}", 0)) for n in range(1, ORDER + 1)]
    total = [int(sums.get(f"total_{n}", 0)) for n in range(1, ORDER + 1)]
    found = BLEU.compute_bleu(right, total, int(sums.get("length", 0)), int(sums.get("wanted", 0)))
    return {"bleu": float(found.score)}


METRIC = Metric({"bleu": Direction.HIGHER}, metrics, tally)
