"""`{"text": "…"}`: plain text, trained as a whole, without a chat template."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    EmptyRow,
    add_columns,
    check_text,
    describe_kind,
    restore_canonical_columns,
)

KIND = "text"
COLUMNS = frozenset({"text"})


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("text"), str)


def convert(row: dict[str, Any]) -> Canonical:
    text = check_text(row.get("text"), "text")
    if not text.strip():
        raise EmptyRow("text is empty")
    return add_columns({"text": text}, row, COLUMNS)


def revert(canonical: Canonical) -> dict[str, Any]:
    if "text" not in canonical:
        raise ValueError(f"text cannot hold {describe_kind(canonical)}")
    return restore_canonical_columns({"text": canonical["text"]}, canonical, convert)
