"""`{"text": "…"}`: plain text, trained as a whole; no chat template touches it."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import Canonical, EmptyRow, held_canonical, named, text_of, with_columns

_USED = frozenset({"text"})


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("text"), str)


def convert(row: dict[str, Any]) -> Canonical:
    text = text_of(row.get("text"), "text")
    if not text.strip():
        raise EmptyRow("text is empty")
    return with_columns({"text": text}, row, _USED)


def revert(canonical: Canonical) -> dict[str, Any]:
    if "text" not in canonical:
        raise ValueError(f"text cannot hold {named(canonical)}")
    return held_canonical({"text": canonical["text"]}, canonical, convert)
