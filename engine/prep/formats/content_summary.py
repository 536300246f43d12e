"""`{"content": "…", "summary": "…"}`: the content is the question; a source's `prompt` can put a task before it."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    add_columns,
    check_text,
    make_exchange,
    require_exchange,
    restore_columns,
)

QUESTIONS = ("content",)
COLUMNS = frozenset({"content", "summary"})


def matches(row: dict[str, Any]) -> bool:
    return "content" in row and "summary" in row


def convert(row: dict[str, Any]) -> Canonical:
    content, summary = (check_text(row.get(name), name) for name in ("content", "summary"))
    return add_columns(make_exchange(None, content, summary), row, COLUMNS)


def revert(canonical: Canonical) -> dict[str, Any]:
    content, summary = require_exchange(canonical, "content_summary")
    return restore_columns("content_summary", {"content": content, "summary": summary}, canonical, convert)
