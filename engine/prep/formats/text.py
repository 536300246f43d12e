"""`{"text": "…"}`: plain text, trained as a whole; no chat template touches it."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import Canonical, text_of


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("text"), str)


def convert(row: dict[str, Any]) -> Canonical:
    text = text_of(row.get("text"), "text")
    if not text.strip():
        raise ValueError("text is empty")
    return {"text": text}
