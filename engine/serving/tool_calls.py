"""Tool calls in a reply: found in its text by the marks that the model's family writes, and given to clients apart.

The family is told by the chat template. A call is passed on as soon as it is complete; text that only looks like one
is returned as text. Where a client requires a call, the reply is constrained to its JSON instead (`require`).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.inference.detokenizer import split_place


class ToolCall(NamedTuple):
    """`arguments` is a JSON object as text, as clients expect it."""

    name: str
    arguments: str
    id: str

    def body(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Family(NamedTuple):
    """What opens and closes calls; without a closing mark they go to the end of the reply, and with `whole` a reply
    that is a call throughout needs no mark."""

    name: str
    opening: str
    closing: str = ""
    whole: bool = False
    short_ids: bool = False
    """Whether the template takes only ids of nine letters and digits."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Tokens that are special in some vocabularies, and text here."""
        return (self.opening, self.closing, _ARGS, _CALL_ID) if self.opening else ()


FAMILIES = (
    Family("mistral", "[TOOL_CALLS]", short_ids=True),
    Family("hermes", "<tool_call>", "</tool_call>"),
    Family("llama", "<|python_tag|>", whole=True),
)
"""Told by their opening mark in the template. `hermes` are Hermes and Qwen (JSON), Qwen3-Coder (`<function=…>`) and
GLM-4.5 (`<arg_key>`)."""
REQUIRED = Family("required", "", whole=True)
"""A reply that was constrained to a call."""

_ARGS, _CALL_ID = "[ARGS]", "[CALL_ID]"
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_KEYED = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def find_family(template: Any) -> Family | None:
    """The family whose mark stands in a chat template, or in the one for conversations with tools."""
    texts = template.values() if isinstance(template, Mapping) else [template]
    text = "\n".join(each for each in texts if isinstance(each, str))
    return next((family for family in FAMILIES if family.opening in text), None)


def check_tools(tools: Sequence[Any]) -> str:
    """What is wrong with a client's `tools`; empty if nothing is."""
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            return f"tools[{place}] needs function.name"
        if not isinstance(function.get("parameters", {}), (dict, type(None))):
            return f"tools[{place}].function.parameters must be a JSON schema"
    return ""


def require(tools: Sequence[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The JSON schema of one call of any tool, or of the one with this name. Raises ValueError for an unknown one."""
    functions = [tool["function"] for tool in tools]
    chosen = [function for function in functions if name in (None, function["name"])]
    if not chosen:
        raise ValueError(f"tool_choice names {name!r}, which is none of the tools")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or {"type": "object", "properties": {}},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in chosen
    ]
    definitions: dict[str, dict[str, Any]] = {}
    for function in chosen:
        for key in ("$defs", "definitions"):  # `#/$defs/…` is looked up at the root of the schema
            found = (function.get("parameters") or {}).get(key)
            if isinstance(found, dict):
                if any(definitions.get(key, {}).get(each, what) != what for each, what in found.items()):
                    raise ValueError(f"two tools have different {key} of the same name: name one tool in tool_choice")
                definitions.setdefault(key, {}).update(found)
    return (calls[0] if len(calls) == 1 else {"anyOf": calls}) | definitions


@dataclass
class ToolCallReader:
    """Reads one reply, in pieces. `tools` are those of the request: a name that is none of them is no call."""

    family: Family
    tools: Mapping[str, Mapping[str, Any]]
    """Name -> JSON schema of its parameters."""
    found: int = 0
    _held: str = ""
    _inside: bool = False
    _begun: bool = False
    """Whether text that is not blank has been passed on."""
    _blanks: str = ""

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """The text and the calls that are certain with this piece."""
        self._held += text
        out, calls = "", []
        while True:
            if self._inside or (self.family.whole and not self._begun and self._may_be_whole()):
                inside, closed, after = self._split_call()
                if not closed:
                    break
                self._inside, self._held = False, after
                made = self._parse(inside)
                calls += made
                if not made:
                    out += self._pass(self.family.opening + inside + closed)
                continue
            before, opened, after = self._held.partition(self.family.opening) if self.family.opening else ("", "", "")
            if opened:
                out += self._pass(before)
                self._inside, self._held = True, after
                continue
            certain = split_place(self._held, (self.family.opening,)) if self.family.opening else len(self._held)
            out += self._pass(self._held[:certain])
            self._held = self._held[certain:]
            break
        return out, calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, at the end of the reply."""
        held, self._held = self._held, ""
        text, calls = "", []
        if self._inside:
            calls = self._parse(held)
            text = "" if calls else self._pass(self.family.opening + held)
        else:
            calls = self._parse(held) if self.family.whole and not self._begun else []
            text = "" if calls else self._pass(held)
        return text if self.found else text + self._blanks, calls

    def _may_be_whole(self) -> bool:
        return self._held.lstrip()[:1] in ("", "{", "[")

    def _split_call(self) -> tuple[str, str, str]:
        return self._held.partition(self.family.closing) if self.family.closing else (self._held, "", "")

    def _pass(self, text: str) -> str:
        """The text for the client. Blanks at its end wait: those before a call are no text."""
        text = self._blanks + text
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept

    def _parse(self, text: str) -> list[ToolCall]:
        """The calls in the text between two marks; none if it is not made of calls alone."""
        read = list(_read_calls(text.strip(), self.tools))
        if not read or any(name not in self.tools or not isinstance(arguments, dict) for name, arguments in read):
            return []
        self.found += len(read)
        self._blanks = ""
        return [
            ToolCall(name, json.dumps(arguments, ensure_ascii=False), make_id(self.family)) for name, arguments in read
        ]


def make_id(family: Family) -> str:
    return uuid.uuid4().hex[:9] if family.short_ids else f"call_{uuid.uuid4().hex[:24]}"


def _read_calls(text: str, tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Names and arguments; empty for what is no call."""
    if _ARGS in text:
        return [_split_args(part) for part in text.split(FAMILIES[0].opening)]
    if found := _FUNCTION.findall(text):
        return [
            (name, {key: _convert(value, name, key, tools) for key, value in _PARAMETER.findall(body)})
            for name, body in found
        ]
    if "<arg_key>" in text:
        name = text.partition("<arg_key>")[0].strip()
        return [(name, {key: _convert(value, name, key, tools) for key, value in _KEYED.findall(text)})]
    return [call for value in _read_json(text) for call in _read_objects(value)]


def _split_args(part: str) -> tuple[str, Any]:
    """`name[ARGS]{…}`, perhaps with `[CALL_ID]…` between."""
    head, _, body = part.partition(_ARGS)
    values = _read_json(body)
    return head.partition(_CALL_ID)[0].strip(), values[0] if len(values) == 1 else None


def _read_json(text: str) -> list[Any]:
    """The JSON values in a text that has nothing else but separators; empty if it has."""
    values, decoder, place = [], json.JSONDecoder(), 0
    while place < len(text):
        if text[place] in " \n\t\r;,":
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        values.append(value)
    return values


def _read_objects(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [call for each in value for call in _read_objects(each)]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return [("", None)]
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        read = _read_json(arguments)
        arguments = read[0] if len(read) == 1 else None
    return [(value["name"], arguments)]


def _convert(text: str, name: str, key: str, tools: Mapping[str, Mapping[str, Any]]) -> Any:
    """A value that was written as plain text, by the type of its parameter: JSON unless that is a string."""
    properties = tools.get(name, {}).get("properties")
    schema = properties.get(key) if isinstance(properties, dict) else None
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
