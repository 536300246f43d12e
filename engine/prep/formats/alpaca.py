"""Alpaca: `instruction`, `input`, `output`, optionally `system` and `history` ([[question, answer], …]).

`input` follows the instruction on a new line, as LLaMA-Factory has it. Reverting leaves them together, in `instruction`.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    Message,
    conversation,
    held,
    only_messages,
    opening,
    said,
    text_of,
    with_columns,
)

QUESTIONS = ("instruction",)
_USED = frozenset({"instruction", "input", "output", "system", "history"})


def matches(row: dict[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def convert(row: dict[str, Any]) -> Canonical:
    answer = said("assistant", text_of(row.get("output"), "output"))
    return with_columns(conversation([*asked(row), answer]), row, _USED)


def asked(row: dict[str, Any]) -> list[Message]:
    """All that stands before the answer. Raises ValueError."""
    turns = opening(row.get("system"))
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("history is not a list of [question, answer]")
    for question, answer in history:
        turns += [said("user", question), said("assistant", answer)]
    question = text_of(row.get("instruction"), "instruction")
    if row.get("input"):
        question += "\n" + text_of(row["input"], "input")
    return [*turns, said("user", question)]


def revert(canonical: Canonical) -> dict[str, Any]:
    messages = only_messages(canonical, "alpaca")
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
    return held("alpaca", row, canonical, convert)
