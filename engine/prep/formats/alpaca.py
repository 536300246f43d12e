"""Alpaca: `instruction`, `input`, `output`, optionally `system` and `history` ([[question, answer], …])."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import Canonical, conversation, text_of


def matches(row: dict[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def convert(row: dict[str, Any]) -> Canonical:
    turns: list[tuple[Any, Any]] = [("system", row["system"])] if row.get("system") else []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("history is not a list of [question, answer]")
    for question, answer in history:
        turns += [("user", question), ("assistant", answer)]
    question = text_of(row.get("instruction"), "instruction")
    if row.get("input"):
        question += "\n" + text_of(row["input"], "input")
    return conversation([*turns, ("user", question), ("assistant", text_of(row.get("output"), "output"))])
