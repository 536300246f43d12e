"""OpenAI messages: `{"messages": [{"role": "user", "content": "…"}, …]}`, with `tool_calls` and `tools`.

The older `functions`, `function_call` and role `function`, and the role `developer`, are read as what replaced them.

Arguments of calls may be JSON text, as in OpenAI's API, or mappings, as chat templates expect. Reverting writes JSON
text, and null as the content of a turn that only calls.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    Canonical,
    Message,
    add_columns,
    describe_kind,
    make_conversation,
    restore_canonical_columns,
    to_json,
)
from engine.prep.formats.cells import is_turns, parse_cell

_USED = frozenset({"messages", "tools"})
COLUMNS = frozenset({"messages", "tools", "functions"})


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("messages"), list) or is_turns(parse_cell(row.get("messages")))


def convert(row: dict[str, Any]) -> Canonical:
    older = not row.get("tools") and bool(row.get("functions"))
    tools, used = (row["functions"], _USED | {"functions"}) if older else (row.get("tools"), _USED)
    return add_columns(make_conversation(row.get("messages"), tools), row, used)


def revert(canonical: Canonical) -> dict[str, Any]:
    if "messages" not in canonical:
        raise ValueError(f"messages cannot hold {describe_kind(canonical)}")
    row: dict[str, Any] = {"messages": [_to_openai(message) for message in canonical["messages"]]}
    if "tools" in canonical:
        row["tools"] = canonical["tools"]
    return restore_canonical_columns(row, canonical, convert)


def _to_openai(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": to_json(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "content": message["content"] or None, "tool_calls": calls}
