"""Triples: sentences to a JSON list of (subject, predicate, object) with the types of subject and object.

The prompt here is the one: training data, chat, probes and evaluation all send these bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from engine.evaluation.fences import load_json

SYSTEM = "You extract facts from text. Answer with a JSON list of triples and nothing else."
KEYS = ("subject", "subject_type", "predicate", "object", "object_type")

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


def score(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Shares in 0…1 over all replies; precision, recall and F1 are micro-averaged over the rows' sets of triples.

    A reply that is not a list of triples counts as none. A ratio without a denominator is 0. Raises ValueError for lists
    that do not pair up, and for a reference that is itself no list of triples.
    """
    if len(replies) != len(references):
        raise ValueError(f"{len(replies)} replies for {len(references)} references")
    valid = fitting = found = expected = right = 0
    for index, (reply, reference) in enumerate(zip(replies, references, strict=True)):
        wanted = parse(reference)
        if wanted is None:
            raise ValueError(f"reference {index} is not a JSON list of triples: {reference[:80]!r}")
        given = parse(reply)
        valid += _is_json(reply)
        fitting += given is not None
        given_set, wanted_set = _facts(given or ()), _facts(wanted)
        found += len(given_set)
        expected += len(wanted_set)
        right += len(given_set & wanted_set)
    return {
        "json_validity": _ratio(valid, len(replies)),
        "schema_validity": _ratio(fitting, len(replies)),
        "triples_precision": _ratio(right, found),
        "triples_recall": _ratio(right, expected),
        "triples_f1": _ratio(2 * right, found + expected),
    }


def _fits(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and item.keys() == set(KEYS) and all(isinstance(field, str) for field in item.values())
        for item in value
    )


def _is_json(reply: str) -> bool:
    try:
        load_json(reply)
    except ValueError:
        return False
    return True


def _facts(triples: Iterable[Triple]) -> set[tuple[str, ...]]:
    """What is compared: subject, predicate and object; types are not, nor are spellings that NFKC makes equal."""
    return {tuple(_normal(triple[key]) for key in ("subject", "predicate", "object")) for triple in triples}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
