"""Triples: sentences to a JSON list of (subject, predicate, object) with the types of subject and object."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from engine.tasks.answer import Answer
from engine.tasks.direction import Direction
from engine.tasks.fences import is_json, load_json
from engine.tasks.sufficient_stats import Tally, ratio
from engine.tasks.task import Breakdown, Messages, Task
from engine.tasks.views import Table

SYSTEM = "You extract facts from text. Answer with a JSON list of triples and nothing else."
KEYS = ("subject", "subject_type", "predicate", "object", "object_type")
FACT = ("subject", "predicate", "object")
"""The keys by which two triples are compared."""

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {key: {"type": "string"} for key in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    },
}

Triple = dict[str, str]

_NOT_IN_A_NAME = re.compile(r"[^\w-]+")
_SUMS = ("found", "expected", "right")


def messages(text: str) -> Messages:
    """The conversation that asks for the triples of `text`."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Extract the triples: {text}"}]


def parse(reply: str) -> list[Triple] | None:
    """The triples of a reply, None where it is not JSON or does not fit the schema."""
    try:
        value = load_json(reply)
    except ValueError:
        return None
    return value if _is_list_of_triples(value) else None


def tally(reply: str, reference: str | None) -> Tally:
    """What a reply adds to the sums that `metrics` reads. Raises ValueError for a reference that is no list of
    triples."""
    given = parse(reply)
    alone: Tally = {"replies": 1, "valid": is_json(reply), "fitting": given is not None}
    if reference is None:
        return alone
    expected = parse(reference)
    if expected is None:
        raise ValueError(f"is not a JSON list of triples: {reference[:80]!r}")
    given_set, expected_set = facts(given or ()), facts(expected)
    right = len(given_set & expected_set)
    return {**alone, "compared": 1, "found": len(given_set), "expected": len(expected_set), "right": right}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Shares in 0…1. Precision, recall and F1 are micro-averages over the rows' sets of triples; they are absent where
    no reply had a reference.

    A reply that is not a list of triples counts as an empty list. A ratio whose denominator is 0 is 0.
    """
    replies, found, expected, right = (sums.get(name, 0) for name in ("replies", *_SUMS))
    shares = {
        "json_validity": ratio(sums.get("valid", 0), replies),
        "schema_validity": ratio(sums.get("fitting", 0), replies),
    }
    if replies and not sums.get("compared"):
        return shares
    return shares | {
        "triples_precision": ratio(right, found),
        "triples_recall": ratio(right, expected),
        "triples_f1": ratio(2 * right, found + expected),
    }


def facts(triples: Iterable[Triple]) -> set[tuple[str, ...]]:
    """The triples as they are compared: without types, and with spellings made equal by NFKC and trimming."""
    return {tuple(_normal(triple[key]) for key in FACT) for triple in triples}


# ── by predicate ───────────────────────────────────────────────────────────────────────────────────────────────────


def tally_by_predicate(answer: Answer) -> Tally:
    """Sums by `predicate/sum`. A reply that is no list of triples counts as an empty list."""
    expected = parse(answer.reference) if answer.reference is not None else None
    if expected is None:
        return {}
    given_set, expected_set = facts(parse(answer.reply) or ()), facts(expected)
    counts: Counter[str] = Counter()
    for name, some in zip(_SUMS, (given_set, expected_set, given_set & expected_set), strict=True):
        counts.update(f"{predicate}/{name}" for _, predicate, _ in some)
    return {"compared": 1, **counts}


def metrics_by_predicate(sums: Mapping[str, float]) -> dict[str, float]:
    """Precision, recall and F1 of every predicate that the references have. Predicates are equal by NFKC and trimming;
    in a metric's name, runs of characters other than letters, digits and hyphens become `_`.
    """
    predicates = sorted({key.rpartition("/")[0] for key in sums if key.endswith("/expected")})
    scores: dict[str, float] = {}
    for predicate in predicates:
        found, expected, right = (sums.get(f"{predicate}/{name}", 0) for name in _SUMS)
        name = _NOT_IN_A_NAME.sub("_", predicate)
        scores[f"triples_precision.{name}"] = ratio(right, found)
        scores[f"triples_recall.{name}"] = ratio(right, expected)
        scores[f"triples_f1.{name}"] = ratio(2 * right, found + expected)
    return scores


def _is_list_of_triples(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and item.keys() == set(KEYS) and all(isinstance(field, str) for field in item.values())
        for item in value
    )


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


_COMPARED = ("triples_precision", "triples_recall", "triples_f1")

TASK = Task(
    messages=messages,
    schema=SCHEMA,
    parse=parse,
    tally=tally,
    metrics=metrics,
    directions=dict.fromkeys(("json_validity", "schema_validity", *_COMPARED), Direction.HIGHER),
    main="triples_f1",
    view=Table(FACT, "triple"),
    breakdown=Breakdown(
        tally_by_predicate, metrics_by_predicate, {f"{name}.*": Direction.HIGHER for name in _COMPARED}
    ),
    expansion="engine.prep.expand.triples",
)
