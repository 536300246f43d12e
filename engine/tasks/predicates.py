"""The scores of triples once more, for each predicate by itself: `triples_f1.born_in`.

A predicate is one when NFKC and trimming make it so; in a metric's name what is no letter, digit or hyphen is written `_`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, ratio
from engine.tasks.triples import facts, parse

_OTHER = re.compile(r"[^\w-]+")
_SUMS = ("found", "expected", "right")


def tally(answer: Answer) -> Tally:
    """Sums by `predicate/sum`. A reply that is no list of triples counts as none."""
    wanted = parse(answer.reference) if answer.reference is not None else None
    if wanted is None:
        return {}
    given_set, wanted_set = facts(parse(answer.reply) or ()), facts(wanted)
    counts: Counter[str] = Counter()
    for name, some in zip(_SUMS, (given_set, wanted_set, given_set & wanted_set), strict=True):
        counts.update(f"{predicate}/{name}" for _, predicate, _ in some)
    return {"compared": 1, **counts}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Precision, recall and F1 of every predicate of the references; of one that only replies have, there is nothing to recall."""
    predicates = sorted({key.rpartition("/")[0] for key in sums if key.endswith("/expected")})
    found: dict[str, float] = {}
    for predicate in predicates:
        given, wanted, right = (sums.get(f"{predicate}/{name}", 0) for name in _SUMS)
        name = _OTHER.sub("_", predicate)
        found[f"triples_precision.{name}"] = ratio(right, given)
        found[f"triples_recall.{name}"] = ratio(right, wanted)
        found[f"triples_f1.{name}"] = ratio(2 * right, given + wanted)
    return found
