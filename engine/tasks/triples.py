"""Triples: sentences to a JSON list of (subject, predicate, object) with the types of subject and object.

The prompt here is the one: training data, chat, probes and evaluation all send these bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.tasks.fences import is_json, load_json
from engine.tasks.sufficient_stats import Tally, each, ratio, summed

SYSTEM = "You extract facts from text. Answer with a JSON list of triples and nothing else."
KEYS = ("subject", "subject_type", "predicate", "object", "object_type")

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {key: {"type": "string"} for key in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    },
}

MAIN = "triples_f1"

Triple = dict[str, str]


def messages(text: str) -> list[dict[str, str]]:
    """The conversation that asks for the triples of `text`."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Extract the triples: {text}"}]


def parse(reply: str) -> list[Triple] | None:
    """The triples of a reply, None where it is not JSON or does not fit the schema."""
    try:
        value = load_json(reply)
    except ValueError:
        return None
    return value if _fits(value) else None


def concerns(columns: Mapping[str, Any]) -> bool:
    """Every row is one."""
    return True


def tally(reply: str, reference: str | None) -> Tally:
    """What a reply adds to the sums that `metrics` reads. Raises ValueError for a reference that is no list of triples."""
    given = parse(reply)
    alone: Tally = {"replies": 1, "valid": is_json(reply), "fitting": given is not None}
    if reference is None:
        return alone
    wanted = parse(reference)
    if wanted is None:
        raise ValueError(f"is not a JSON list of triples: {reference[:80]!r}")
    given_set, wanted_set = facts(given or ()), facts(wanted)
    right = len(given_set & wanted_set)
    return {**alone, "compared": 1, "found": len(given_set), "expected": len(wanted_set), "right": right}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Shares in 0…1; precision, recall and F1 are micro-averaged over the rows' sets of triples, and absent where no reply had a reference.

    A reply that is not a list of triples counts as none. A ratio without a denominator is 0.
    """
    replies, found, expected, right = (sums.get(name, 0) for name in ("replies", "found", "expected", "right"))
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


def score(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`metrics` over all replies. Raises ValueError for lists that do not pair up, and for a reference that is itself no list of triples."""
    return metrics(summed(each(tally, replies, references)))


def _fits(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and item.keys() == set(KEYS) and all(isinstance(field, str) for field in item.values())
        for item in value
    )


def facts(triples: Iterable[Triple]) -> set[tuple[str, ...]]:
    """What is compared: subject, predicate and object; types are not, nor are spellings that NFKC makes equal."""
    return {tuple(_normal(triple[key]) for key in ("subject", "predicate", "object")) for triple in triples}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()
