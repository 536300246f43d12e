"""ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, …]}`, also with role/content, and an optional `system`."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import Canonical, conversation

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("conversations"), list)


def convert(row: dict[str, Any]) -> Canonical:
    if not matches(row):
        raise ValueError("conversations is not a list")
    turns: list[tuple[Any, Any]] = [("system", row["system"])] if row.get("system") else []
    for number, turn in enumerate(row["conversations"], 1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number} is {type(turn).__name__}, not a mapping of from and value")
        name = turn.get("from", turn.get("role"))
        turns.append((ROLES.get(name, name) if isinstance(name, str) else name, turn.get("value", turn.get("content"))))
    return conversation(turns)
