"""Alpaca: `instruction`, `input`, `output`, optionally `system` and `history` ([[question, answer], …]).

`input` is appended to the instruction on a new line, as in LLaMA-Factory. Reverting leaves both in `instruction`.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    Message,
    add_columns,
    check_text,
    make_conversation,
    make_message,
    require_messages,
    restore_columns,
    system_turns,
)

QUESTIONS = ("instruction",)
_USED = frozenset({"instruction", "input", "output", "system", "history"})


def matches(row: dict[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def convert(row: dict[str, Any]) -> Canonical:
    answer = make_message("assistant", check_text(row.get("output"), "output"))
    return add_columns(make_conversation([*question_turns(row), answer]), row, _USED)


def question_turns(row: dict[str, Any]) -> list[Message]:
    """All turns before the answer. Raises ValueError."""
    turns = system_turns(row.get("system"))
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("history is not a list of [question, answer]")
    for question, answer in history:
        turns += [make_message("user", question), make_message("assistant", answer)]
    question = check_text(row.get("instruction"), "instruction")
    if row.get("input"):
        question += "\n" + check_text(row["input"], "input")
    return [*turns, make_message("user", question)]


def revert(canonical: Canonical) -> dict[str, Any]:
    messages = require_messages(canonical, "alpaca")
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = messages[1:] if system else messages
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(f"alpaca holds questions and answers in turn, not {', '.join(roles)}")
    words = [turn["content"] for turn in turns]
    *history, (question, answer) = zip(words[::2], words[1::2], strict=True)
    row: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    if system:
        row["system"] = system
    if history:
        row["history"] = [list(pair) for pair in history]
    return restore_columns("alpaca", row, canonical, convert)
