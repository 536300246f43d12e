"""`{"context": "Instruction: …\\nInput: …\\nAnswer: ", "target": "…"}`; a context without those words is the question
itself."""

from __future__ import annotations

import re
from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    add_columns,
    check_text,
    make_exchange,
    require_exchange,
    restore_columns,
)

QUESTIONS = ("context",)
COLUMNS = frozenset({"context", "target"})
_CONTEXT = re.compile(r"Instruction: (.*?)(?:\nInput: (.*?))?\nAnswer: ?", re.DOTALL)


def matches(row: dict[str, Any]) -> bool:
    return "context" in row and "target" in row


def convert(row: dict[str, Any]) -> Canonical:
    context = check_text(row.get("context"), "context")
    parts = _CONTEXT.fullmatch(context)
    question = "\n".join(part for part in parts.groups() if part) if parts else context
    return add_columns(make_exchange(None, question, check_text(row.get("target"), "target")), row, COLUMNS)


def revert(canonical: Canonical) -> dict[str, Any]:
    """The question as an instruction, or as the whole context if it contains the format's own words."""
    question, answer = require_exchange(canonical, "context_target")
    try:
        row = {"context": f"Instruction: {question}\nAnswer: ", "target": answer}
        return restore_columns("context_target", row, canonical, convert)
    except ValueError:
        return restore_columns("context_target", {"context": question, "target": answer}, canonical, convert)
