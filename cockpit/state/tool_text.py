"""Tool calls and results in the text of a turn, by the marks that families of models write. Pure.

Hermes, Qwen and GLM put calls between `<tool_call>` and `</tool_call>`: as JSON, as `<function=NAME>` with
`<parameter=KEY>`, or as a name with `<arg_key>` and `<arg_value>`. Mistral writes `[TOOL_CALLS]` before them, Llama
`<|python_tag|>`, or JSON alone. Results stand between `<tool_response>` and `</tool_response>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
_ARGS = "[ARGS]"
_BLOCK = re.compile(
    r"<tool_call>(?P<call>.*?)(?:</tool_call>|\Z)|<tool_response>(?P<result>.*?)(?:</tool_response>|\Z)"
    r"|(?:\[TOOL_CALLS\]|<\|python_tag\|>)(?P<rest>.*)\Z",
    re.DOTALL,
)
_FUNCTION = re.compile(r"\s*<function=([^>\n]{1,300})>(.*?)(?:</function>\s*|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]{1,300})>\n?(.*)", re.DOTALL)
_NAME = re.compile(r"\s*([\w.-]{1,300})\s*(?=<arg_key>|\Z)")
_NAMES = ("arguments", "parameters")


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ToolResult:
    text: str


Part = str | ToolCall | ToolResult


def split_tools(text: str) -> list[Part]:
    """The text with its calls and results taken out, in their order. What only looks like a call stays text."""
    if whole := _read_json(text, exact=True):
        return [*whole]
    parts: list[Part] = []
    at = 0
    for block in _BLOCK.finditer(text):
        found: Sequence[Part]
        if block["result"] is not None:
            found = [ToolResult(block["result"].strip())]
        else:
            found = _read_calls(block["call"] if block["call"] is not None else block["rest"])
        if found:
            parts += [part for part in (text[at : block.start()].strip("\n"),) if part.strip()]
            parts += found
            at = block.end()
    rest = text[at:].strip("\n") if at else text
    return [*parts, rest] if rest.strip() or not parts else parts


def has_tools(text: str) -> bool:
    """Whether the text has a call or a result."""
    return any(not isinstance(part, str) for part in split_tools(text))


def write_call(name: str, arguments: Any) -> str:
    """A call as text, as Hermes and Qwen write it. `arguments` may be JSON text, as in OpenAI's API."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"": arguments}
    return f"{CALL}\n{json.dumps({'name': name, 'arguments': arguments or {}}, ensure_ascii=False)}\n{CALL_END}"


def write_result(text: str) -> str:
    return f"{RESULT}\n{text}\n{RESULT_END}"


def _read_calls(text: str) -> list[ToolCall]:
    if found := _read_json(text):
        return found
    if function := _FUNCTION.fullmatch(text):
        return [ToolCall(function[1].strip(), dict(_read_parameters(function[2])))]
    if _ARGS in text:  # NAME[ARGS]{…}
        name, _, arguments = text.partition(_ARGS)
        value = _parse(arguments)
        return [ToolCall(name.strip(), value)] if isinstance(value, dict) and name.strip() else []
    if named := _NAME.match(text):
        return [ToolCall(named[1], dict(_read_pairs(text)))]
    return []


def _read_parameters(text: str) -> Iterator[tuple[str, str]]:
    """The name and value of each `<parameter=NAME>VALUE</parameter>`. Parts, and no pattern for all: what begins
    thousands of them and ends none would be searched as often."""
    for part in text.split("</parameter>")[:-1]:
        if found := _PARAMETER.search(part):
            yield found[1], found[2].removesuffix("\n")


def _read_pairs(text: str) -> Iterator[tuple[str, str]]:
    """The key and value of each `<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>`."""
    for part in text.split("</arg_value>")[:-1]:
        before, found, value = part.partition("<arg_value>")
        key, ended, rest = before.rpartition("<arg_key>")[2].partition("</arg_key>")
        if found and ended and not rest.strip():
            yield key.strip(), value


def _read_json(text: str, *, exact: bool = False) -> list[ToolCall]:
    """The calls of a JSON object or of a list of these; `exact`: objects with nothing but name and arguments."""
    if text.lstrip()[:1] not in ("{", "["):
        return []
    value = _parse(text)
    calls = []
    for each in value if isinstance(value, list) else [value]:
        name = each.get("name") if isinstance(each, dict) else None
        arguments = next((each[key] for key in _NAMES if isinstance(each.get(key), dict)), None) if name else None
        if not isinstance(name, str) or (exact and (arguments is None or len(each) != 2)):
            return []
        calls.append(ToolCall(name, arguments or {}))
    return calls


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
