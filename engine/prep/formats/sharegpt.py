"""ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, …]}`, or with role/content; optionally `system` and
`tools`.

Role names are those of LLaMA-Factory's documentation and of published data sets. The value of a `function_call` turn is
the JSON text of `{"name", "arguments"}` or of a list of these; `tools` is the JSON text of a list.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import (
    SYSTEM_COLUMNS,
    Canonical,
    Message,
    add_columns,
    check_call,
    describe_kind,
    find_system,
    make_conversation,
    parse_json,
    restore_columns,
    to_json,
)
from engine.prep.formats.cells import is_turns, parse_cell
from engine.protocol.text import name_kind

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
    "observation": "tool",
    "function_response": "tool",
    "function-response": "tool",
    "function": "tool",
    "tool": "tool",
}
CALLS = ("function_call", "tool_call", "function-call")
_NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
_TURN = ("from", "role", "value", "content")
_USED = frozenset({"conversations", "tools"})
COLUMNS = frozenset({"conversations", "tools", *SYSTEM_COLUMNS})


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("conversations"), list) or is_turns(parse_cell(row.get("conversations")))


def convert(row: dict[str, Any]) -> Canonical:
    system, column = find_system(row)
    turns = system + convert_turns(row.get("conversations"), "conversations")
    if system and len(turns) > 1 and turns[1].get("role") == "system":
        raise ValueError(f"there is a system prompt in the column {min(column)} and another in conversations")
    return add_columns(make_conversation(turns, row.get("tools")), row, _USED | column)


def convert_turns(turns: Any, name: str) -> list[Message]:
    """Turns with OpenAI's keys and roles, not yet checked; text that holds a list is parsed. Raises ValueError."""
    turns = parse_cell(turns)
    if not isinstance(turns, list):
        raise ValueError(f"{name} is not a list")
    return [convert_turn(turn, number) for number, turn in enumerate(turns, 1)]


def convert_turn(turn: Any, number: int) -> Message:
    """One turn of either spelling with OpenAI's keys and role, not yet checked. Raises ValueError."""
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} is {name_kind(turn)}, not a mapping of from and value")
    name, value = (_either(turn, *names) for names in (("from", "role"), ("value", "content")))
    further = {key: each for key, each in turn.items() if key not in _TURN}
    if name in CALLS:
        calls = parse_json(value, f"turn {number} ({name})") if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        found = [check_call(call, f"turn {number}, call {place}") for place, call in enumerate(calls, 1)]
        return {"role": "assistant", "content": "", "tool_calls": found, **further}
    role = ROLES.get(name, name) if isinstance(name, str) else name
    return {"role": role, "content": value, **further}


def _either(turn: dict[str, Any], one: str, other: str) -> Any:
    return turn[one] if turn.get(one) is not None else turn.get(other)


def revert(canonical: Canonical) -> dict[str, Any]:
    if "messages" not in canonical:
        raise ValueError(f"sharegpt cannot hold {describe_kind(canonical)}")
    messages = enumerate(canonical["messages"], 1)
    row: dict[str, Any] = {"conversations": [_revert_turn(message, number) for number, message in messages]}
    if "tools" in canonical:
        row["tools"] = to_json([_revert_tool(tool) for tool in canonical["tools"]])
    return restore_columns("sharegpt", row, canonical, convert)


def _revert_turn(message: Message, number: int) -> dict[str, Any]:
    further = {key: each for key, each in message.items() if key not in ("role", "content", "tool_calls")}
    if "tool_calls" not in message:
        return {"from": _NAMES[message["role"]], "value": message["content"], **further}
    if message["content"]:
        raise ValueError(f"sharegpt cannot hold both the words and the tool calls of turn {number}")
    calls = [
        {key: each for key, each in call.items() if key not in ("type", "function")} | call["function"]
        for call in message["tool_calls"]
    ]
    return {"from": CALLS[0], "value": to_json(calls[0] if len(calls) == 1 else calls), **further}


def _revert_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """The function alone, as in ShareGPT data sets, if the tool has no other keys."""
    function: dict[str, Any] = tool["function"]
    return function if tool.keys() == {"type", "function"} and tool["type"] == "function" else tool
