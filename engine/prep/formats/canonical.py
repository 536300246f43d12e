"""Canonical rows, to which every format is converted, and their rules.

A canonical row is one of

    {"text": str}
    {"messages": [message, …][, "tools": [tool, …]]}
    {"prompt": [message, …], "chosen": [message, …], "rejected": [message, …][, "tools"]}
    {"prompt": [message, …], "completion": [message, …], "label": bool[, "tools"]}

and may have `columns`: the other columns of the source row, by name. A message has OpenAI's `role` and `content` and,
if given, `tool_calls` (with arguments as mappings, which chat templates expect), `tool_call_id`, `name` and any other
key that a template may read. A tool is `{"type": "function", "function": {"name", …}}`.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Set
from typing import Any

import msgspec

from engine.prep.formats.cells import drop_nulls, parse_cell, without_padding
from engine.protocol.text import name_kind

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {"developer": "system", "function": "tool"}
"""Names that OpenAI gives or gave to these roles."""
SYSTEM_COLUMNS = ("system", "system_prompt")

PARTS = ("messages", "prompt", "chosen", "rejected", "completion")
"""The keys of a canonical row that hold messages."""

Canonical = dict[str, Any]
Message = dict[str, Any]

_PLAIN = {"role", "content"}
_OWN = {"text", "messages", "tools", "prompt", "completion", "chosen", "rejected", "label", "columns"}


class EmptyRow(ValueError):
    """A row without text, or with a reply that is empty: the rule `data.clean.empty` asks for these to be dropped."""


# ── conversations ──────────────────────────────────────────────────────────────────────────────────────────────────


def make_conversation(turns: Any, tools: Any = None) -> Canonical:
    """A row of messages; tools that a system turn offers become those of the row. Raises ValueError for messages that a
    template cannot render or that have nothing to train on."""
    found = check_messages(turns, "messages")
    if not any(message["role"] == "assistant" for message in found):
        raise ValueError("no assistant turn: there is nothing to train on")
    return add_tools({"messages": found}, tools)


def make_exchange(system: Any, question: Any, answer: Any) -> Canonical:
    """A row with one question and its answer, and a system turn unless `system` is empty."""
    return make_conversation([*system_turns(system), make_message("user", question), make_message("assistant", answer)])


def system_turns(system: Any) -> list[Message]:
    return [make_message("system", system)] if system else []


def find_system(row: Mapping[str, Any]) -> tuple[list[Message], frozenset[str]]:
    """The system turn of a row's own column, if it has one, and the name of that column."""
    name = next((name for name in SYSTEM_COLUMNS if row.get(name)), SYSTEM_COLUMNS[0])
    return system_turns(row.get(name)), frozenset({name})


def make_message(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def check_messages(turns: Any, name: str) -> list[Message]:
    """The messages, checked and normalised; text that holds a list is parsed. Raises ValueError naming the turn, from
    1."""
    turns = parse_cell(turns)
    if not isinstance(turns, list):
        raise ValueError(f"{name} is not a list")
    return [_check_message(turn, number) for number, turn in enumerate(turns, 1)]


def _check_message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} is {name_kind(turn)}, not a mapping of role and content")
    role, content = turn.get("role"), turn.get("content")
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"turn {number} has the role {abbreviate(role)}, not one of {', '.join(ROLES)}")
    calls = _check_calls(turn["tool_calls"], number) if turn.get("tool_calls") else []
    if turn.get("function_call"):
        if calls:
            raise ValueError(f"turn {number} has both tool_calls and function_call, which they replaced: leave one out")
        calls = [check_call(parse_cell(turn["function_call"]), f"turn {number}, function_call")]
    if calls and role != "assistant":
        raise ValueError(f"turn {number} ({role}) calls tools, which only the assistant does")
    if calls and content is None:
        content = ""
    text = check_text(_join_parts(content, number), f"turn {number} ({role})")
    if role == "assistant" and not calls and not text.strip():
        raise EmptyRow(f"turn {number} (assistant) is empty")
    message = make_message(role, text)
    if calls:
        message["tool_calls"] = calls
    if turn.keys() - _PLAIN:
        _carry_further_keys(turn, message, number)
    return message


def _join_parts(content: Any, number: int) -> Any:
    """Content parts joined to one text; anything else unchanged. A part's text is in `text`, or in `value`."""
    if not isinstance(content, list):
        return content
    return "".join(_part_text(part, number) for part in content)


def _part_text(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else name_kind(part)
    if isinstance(part, dict) and kind in ("text", "input_text", "output_text"):
        text = part.get("text") if part.get("text") is not None else part.get("value")
        if isinstance(text, str):
            return text
    media = any(word in str(kind) for word in ("image", "audio", "video"))
    why = "images, sound and video are not trained here" if media else "only text can be trained on"
    raise ValueError(f"turn {number} holds a part of type {abbreviate(kind)}; {why}")


def _carry_further_keys(turn: Mapping[str, Any], message: Message, number: int) -> None:
    """Copy further keys, which templates may read, to the message. Null values are left out."""
    if turn.get("weight") not in (None, 0, 1):
        raise ValueError(f"turn {number} has the weight {abbreviate(turn['weight'])}; it is 0 (not trained) or 1")
    for key, value in turn.items():
        if key not in _PLAIN and key not in ("tool_calls", "function_call") and value is not None:
            message[key] = check_json(value, f"turn {number} {key}")


def _check_calls(calls: Any, number: int) -> list[dict[str, Any]]:
    """Tool calls as `{"type": "function", "function": {"name", "arguments": mapping}}`, with an id if given. They may
    be JSON text."""
    if isinstance(calls, str):
        calls = parse_json(calls, f"turn {number}: tool_calls") if calls.strip() else []
    if not isinstance(calls, list):
        raise ValueError(f"turn {number}: tool_calls is not a list")
    return [check_call(call, f"turn {number}, call {place}") for place, call in enumerate(calls, 1)]


def check_call(call: Any, name: str) -> dict[str, Any]:
    """A call given in OpenAI's form or as name and arguments alone, in OpenAI's form. Raises ValueError."""
    if not isinstance(call, dict):
        raise ValueError(f"{name} is {name_kind(call)}, not a mapping")
    function = call if call.get("function") is None else call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{name} names no function")
    if (call.get("type") or "function") != "function":
        raise ValueError(f"{name} is of type {abbreviate(call['type'])}, not function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{name}: arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise ValueError(f"{name}: arguments are {name_kind(arguments)}, not an object")
    inner = {"name": function["name"], "arguments": arguments or {}}
    if function is not call:
        inner = {**{key: value for key, value in function.items() if value is not None}, **inner}
    own = ("type", "function", "name", "arguments")
    outer = {key: value for key, value in call.items() if key not in own and value is not None}
    found: dict[str, Any] = check_json({**outer, "type": "function", "function": inner}, name)
    return found


def add_tools(row: Canonical, tools: Any) -> Canonical:
    """Add `tools` to the row: a list or its JSON text; a bare `{"name", …}` is put into OpenAI's form. Without any, the
    tools of a system turn are taken. Nulls that only fill up a table are dropped from tools and calls. Raises
    ValueError."""
    offered = _parse_tools(tools)
    for message in _system_turns_with_tools(row):
        of_turn = _parse_tools(message.pop("tools"))
        if offered and of_turn and offered != of_turn:
            raise ValueError("there are tools in the column tools and others in a system turn")
        offered = offered or of_turn
    if not offered:
        return row
    row["tools"] = offered
    parameters = {tool["function"]["name"]: tool["function"].get("parameters") for tool in offered}
    for message in (message for part in PARTS for message in row.get(part, ())):
        for call in message.get("tool_calls", ()):
            function = call["function"]
            function["arguments"] = without_padding(function["arguments"], parameters.get(function["name"]))
    return row


def _system_turns_with_tools(row: Canonical) -> list[Message]:
    turns = (turn for part in ("messages", "prompt") for turn in row.get(part, ()))
    return [turn for turn in turns if turn["role"] == "system" and "tools" in turn]


def _parse_tools(tools: Any) -> list[dict[str, Any]]:
    if isinstance(tools, str):
        tools = parse_cell(tools)
        if isinstance(tools, str):
            tools = parse_json(tools, "tools") if tools.strip() else []
    if not tools:
        return []
    if not isinstance(tools, list):
        raise ValueError("tools is not a list")
    return [_check_tool(tool, number) for number, tool in enumerate(tools, 1)]


def _check_tool(tool: Any, number: int) -> dict[str, Any]:
    function = tool.get("function") or tool if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"tool {number} has no name")
    given = {"function": tool} if function is tool else {key: each for key, each in tool.items() if each is not None}
    whole = {"type": "function", **given}
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if isinstance(properties, dict) and None in properties.values():
        whole = drop_nulls(whole)  # no property has the schema null: a table has filled it up
    found: dict[str, Any] = check_json(whole, f"tool {number}")
    return found


# ── values ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_text(value: Any, name: str) -> str:
    """Returns `value`. Raises ValueError unless it is text that UTF-8 can encode (half a surrogate pair cannot be)."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {'missing' if value is None else name_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a surrogate pair")
    return value


def check_json(value: Any, name: str) -> Any:
    """Returns `value`, or None for NaN and infinity. Raises ValueError unless JSON can represent it."""
    if isinstance(value, str):
        return check_text(value, name)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a surrogate pair")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be represented in JSON: {error}")
    return value


def parse_json(text: str, name: str) -> Any:
    """The value of JSON text. Raises ValueError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise ValueError(f"{name} is not JSON: {error}")


def abbreviate(value: Any) -> str:
    """A short form of any value, for a message."""
    return reprlib.repr(value)


def to_json(value: Any) -> str:
    """JSON text of a value, with spaces and without escaped letters."""
    return json.dumps(value, ensure_ascii=False)


# ── other columns, and reverting ────────────────────────────────────────────────────────────────────────────────


def add_columns(found: Canonical, row: Mapping[str, Any], used: Set[str]) -> Canonical:
    """Add to `found` the columns of its source row that are not in `used`. Raises ValueError for a value that is not
    JSON."""
    if row.keys() <= used:
        return found
    others = {str(name): check_json(value, str(name)) for name, value in row.items() if name not in used}
    if others.keys() == {"columns"} and isinstance(others["columns"], dict) and row.keys() <= _OWN:
        others = dict(others["columns"])  # the source row is canonical already
    if others:
        found["columns"] = others
    return found


Convert = Callable[[dict[str, Any]], Canonical]


def restore_columns(row_format: str, row: dict[str, Any], canonical: Canonical, convert: Convert) -> dict[str, Any]:
    """`row` with the other columns of `canonical`, after checking that it converts to `canonical` again.

    Raises ValueError if it does not: the message names columns that have a meaning in this format.
    """
    columns = canonical.get("columns", {})
    twice = sorted(columns.keys() & row.keys())
    if twice:
        raise ValueError(f"{row_format} has a meaning of its own for the column {', '.join(twice)}")
    whole = {**row, **columns}
    if _converts_to(whole, canonical, convert):
        return whole
    bare = {key: value for key, value in canonical.items() if key != "columns"}
    if columns and _converts_to(row, bare, convert):
        guilty = [
            name
            for name in columns
            if not _converts_to({**row, name: columns[name]}, {**bare, "columns": {name: columns[name]}}, convert)
        ]
        raise ValueError(f"{row_format} has a meaning of its own for the column {', '.join(guilty or columns)}")
    raise ValueError(f"{row_format} would read this row differently")


def restore_canonical_columns(row: dict[str, Any], canonical: Canonical, convert: Convert) -> dict[str, Any]:
    """As `restore_columns`, for formats that also accept canonical rows: columns with a meaning in the format stay in
    `columns`."""
    columns = canonical.get("columns", {})
    whole = {**columns, **row}
    if len(whole) == len(columns) + len(row) and _converts_to(whole, canonical, convert):
        return whole
    return {**row, "columns": columns}


def _converts_to(row: dict[str, Any], canonical: Canonical, convert: Convert) -> bool:
    try:
        return convert(row) == canonical
    except ValueError:
        return False


def require_messages(canonical: Canonical, row_format: str) -> list[Message]:
    """The messages of a row, for a format without tools. Raises ValueError naming what the format cannot represent."""
    if "messages" not in canonical:
        raise ValueError(f"{row_format} cannot hold {describe_kind(canonical)}")
    if "tools" in canonical:
        raise ValueError(f"{row_format} cannot hold tools")
    messages: list[Message] = canonical["messages"]
    for number, message in enumerate(messages, 1):
        if further := sorted(message.keys() - _PLAIN):
            raise ValueError(f"{row_format} cannot hold the {', '.join(further)} of turn {number}")
    return messages


def require_exchange(canonical: Canonical, row_format: str) -> tuple[str, str]:
    """Question and answer of a row that has nothing else. Raises ValueError naming what else it has."""
    messages = require_messages(canonical, row_format)
    if [message["role"] for message in messages] != ["user", "assistant"]:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"{row_format} holds one question and its answer, not the turns {roles}")
    return messages[0]["content"], messages[1]["content"]


def describe_kind(canonical: Mapping[str, Any]) -> str:
    """The kind of a row, in words for a message."""
    if "chosen" in canonical:
        return "preference pairs"
    if "label" in canonical:
        return "single judgements"
    return "conversations" if "messages" in canonical else "plain text"


def kind_of(canonical: Mapping[str, Any]) -> str:
    """The kind of prepared rows that a row becomes, as a method's `Options.rows` names it."""
    if "chosen" in canonical:
        return "pairs"
    return "judged" if "label" in canonical else "tokens"


def conversation_of(canonical: Mapping[str, Any]) -> list[Message]:
    """A row's conversation, with the first of its replies; empty for plain text."""
    if "messages" in canonical:
        messages: list[Message] = canonical["messages"]
        return messages
    return [*canonical.get("prompt", ()), *canonical.get("chosen", canonical.get("completion", ()))]


def all_text(canonical: Mapping[str, Any]) -> str:
    """All text of a row, turn after turn, a line break between two."""
    if "text" in canonical:
        return str(canonical["text"])
    turns = [turn for part in PARTS for turn in canonical.get(part) or ()]
    return "\n".join(turn["content"] for turn in turns if turn.get("content"))
