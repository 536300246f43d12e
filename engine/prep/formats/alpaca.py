"""Alpaca: `instruction`, `input`, `output`, optionally `system` and `history` ([[question, answer], …]).

`input` is appended to the instruction on a new line, as in LLaMA-Factory; without an instruction it is the question.
Reverting leaves both in `instruction`.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    SYSTEM_COLUMNS,
    Canonical,
    Message,
    add_columns,
    check_text,
    find_system,
    make_conversation,
    make_message,
    require_messages,
    restore_columns,
)
from engine.prep.formats.cells import parse_cell

QUESTIONS = ("instruction",)
_USED = frozenset({"instruction", "input", "output", "history"})
COLUMNS = frozenset({"instruction", "input", "output", "history", *SYSTEM_COLUMNS})


def matches(row: dict[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def convert(row: dict[str, Any]) -> Canonical:
    answer = make_message("assistant", check_text(row.get("output"), "output"))
    return add_columns(make_conversation([*question_turns(row), answer]), row, _USED | find_system(row)[1])


def question_turns(row: dict[str, Any]) -> list[Message]:
    """All turns before the answer. Raises ValueError."""
    turns, _ = find_system(row)
    history = parse_cell(row.get("history")) or []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise ValueError("history is not a list of [question, answer]")
    for question, answer in history:
        turns += [make_message("user", question), make_message("assistant", answer)]
    return [*turns, make_message("user", _join_question(row.get("instruction"), row.get("input")))]


def _join_question(instruction: Any, more: Any) -> str:
    if not more:
        return check_text(instruction, "instruction")
    more = check_text(more, "input")
    if instruction is None or (isinstance(instruction, str) and not instruction.strip()):
        return more
    return check_text(instruction, "instruction") + "\n" + more


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
