"""OpenAI messages: `{"messages": [{"role": "user", "content": "…"}, …]}`. Tool calls are refused, never dropped in silence."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import Canonical, conversation


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("messages"), list)


def convert(row: dict[str, Any]) -> Canonical:
    if not matches(row):
        raise ValueError("messages is not a list")
    if row.get("tools"):
        raise ValueError("tools are not supported yet")
    turns = []
    for number, message in enumerate(row["messages"], 1):
        if not isinstance(message, dict):
            raise ValueError(f"turn {number} is {type(message).__name__}, not a mapping of role and content")
        if message.get("tool_calls"):
            raise ValueError(f"turn {number} calls tools, which is not supported yet")
        turns.append((message.get("role"), message.get("content")))
    return conversation(turns)
