"""`{"prompt": "…", "completion": "…"}`: one exchange. The columns may also be called `question`, and `response` or
`answer`.

Prompt and completion may be lists of messages, as in trl; then only the completion is trained.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    SYSTEM_COLUMNS,
    Canonical,
    Message,
    add_columns,
    check_messages,
    find_system,
    make_conversation,
    make_message,
    require_exchange,
    require_messages,
    restore_columns,
)
from engine.prep.formats.cells import find_filled, parse_together

QUESTIONS = ("prompt", "question")
ANSWERS = ("completion", "response", "answer")
COLUMNS = frozenset({*QUESTIONS, *ANSWERS, "tools", *SYSTEM_COLUMNS})


def matches(row: dict[str, Any]) -> bool:
    return find_filled(row, QUESTIONS) is not None and find_filled(row, ANSWERS) is not None


def convert(row: dict[str, Any]) -> Canonical:
    question, answer = find_filled(row, QUESTIONS), find_filled(row, ANSWERS)
    row = parse_together(row, [name for name in (question, answer) if name])
    used = frozenset(name for name in (question, answer) if name)
    prompt, completion = (row[name] if name else None for name in (question, answer))
    if isinstance(prompt, list) and isinstance(completion, list):
        before = [_untrained(message) for message in check_messages(prompt, "prompt")]
        return add_columns(make_conversation([*before, *completion], row.get("tools")), row, used | {"tools"})
    system, column = find_system(row)
    turns = [*system, make_message("user", prompt), make_message("assistant", completion)]
    return add_columns(make_conversation(turns), row, used | column)


def _untrained(message: Message) -> Message:
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def revert(canonical: Canonical) -> dict[str, Any]:
    messages = require_messages(canonical, "prompt_completion")
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    question, answer = require_exchange({"messages": messages[1:] if system else messages}, "prompt_completion")
    row = {"prompt": question, "completion": answer} | ({"system": system} if system else {})
    return restore_columns("prompt_completion", row, canonical, convert)
