"""`{"context": "Instruction: …\\nInput: …\\nAnswer: ", "target": "…"}`; a context without those words is the question as it is."""

from __future__ import annotations

import re
from typing import Any

from engine.prep.formats.canonical import Canonical, question_answer, text_of

_CONTEXT = re.compile(r"Instruction: (.*?)(?:\nInput: (.*?))?\nAnswer: ?", re.DOTALL)


def matches(row: dict[str, Any]) -> bool:
    return "context" in row and "target" in row


def convert(row: dict[str, Any]) -> Canonical:
    context = text_of(row.get("context"), "context")
    parts = _CONTEXT.fullmatch(context)
    question = "\n".join(part for part in parts.groups() if part) if parts else context
    return question_answer(None, question, text_of(row.get("target"), "target"))
