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
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_BETWEEN = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*")
_LONGEST_NAME = 300
"""Characters of the name of a function or parameter that is written in a tag."""
_NOT_A_CALL: list[tuple[str, Any]] = [("", None)]


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
                made = self._parse(inside, closed=True)
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
            calls = self._parse(held, closed=not self.family.closing)
            text = "" if calls else self._pass(self.family.opening + held)
        else:
            calls = self._parse(held, closed=True) if self.family.whole and not self._begun else []
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

    def _parse(self, text: str, *, closed: bool) -> list[ToolCall]:
        """The calls in the text between two marks; none if it is not made of calls alone. `closed`: whether the reply
        went on after it, or needs no mark; else it may have been cut off."""
        text = text.strip()
        try:
            read = _read_calls(text, self.tools, closed)
            if self.family.closing and closed and text in self.tools:  # GLM's call without arguments
                read = [(text, {})]
            if any(name not in self.tools or not isinstance(arguments, dict) for name, arguments in read):
                return []
            calls = [ToolCall(name, _write_json(arguments), make_id(self.family)) for name, arguments in read]
        except (ValueError, RecursionError):  # no JSON, or nested too deeply
            return []
        if calls:
            self.found += len(calls)
            self._blanks = ""
        return calls


def make_id(family: Family) -> str:
    return uuid.uuid4().hex[:9] if family.short_ids else f"call_{uuid.uuid4().hex[:24]}"


def _write_json(arguments: dict[str, Any]) -> str:
    """Raises ValueError for a number that JSON does not have."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # the model has escaped half a character
        return json.dumps(arguments, allow_nan=False)
    return text


def _read_calls(text: str, tools: Mapping[str, Mapping[str, Any]], closed: bool) -> list[tuple[str, Any]]:
    """Names and arguments; empty, or with an unknown name, for what is no call. The time is linear in the text's
    length, whatever is in it. Raises ValueError, RecursionError."""
    if text[:1] in ("{", "["):  # first: an argument may hold another family's marks
        return [call for value in _read_json(text) for call in _read_objects(value)]
    if _ARGS in text:
        return _read_marked(text)
    if text.startswith(_FUNCTION):
        return _read_functions(text, tools) if closed or text.endswith(_FUNCTION_END) else []
    if _KEY in text:
        return _read_keyed(text, tools) if closed else []
    return []


def _read_marked(text: str) -> list[tuple[str, Any]]:
    """`name[ARGS]{…}`, perhaps with `[CALL_ID]…` between, one or several."""
    calls: list[tuple[str, Any]] = []
    place = 0
    while place < len(text):
        middle = text.find(_ARGS, place)
        if middle < 0:
            return _NOT_A_CALL
        value, end = _DECODER.raw_decode(text, _skip_blanks(text, middle + len(_ARGS)))
        calls.append((text[place:middle].partition(_CALL_ID)[0].strip(), value))
        found = _BETWEEN.match(text, end)
        place = found.end() if found else end
    return calls


def _read_functions(text: str, tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """`<function=NAME>…</function>`, one or several."""
    calls: list[tuple[str, Any]] = []
    place = 0
    while (begin := text.find(_FUNCTION, place)) >= 0:
        middle = text.find(">", begin, begin + _LONGEST_NAME)
        if middle < 0:
            return _NOT_A_CALL
        end = text.find(_FUNCTION_END, middle)
        place = len(text) if end < 0 else end
        name = text[begin + len(_FUNCTION) : middle]
        calls.append((name, _read_parameters(text[middle + 1 : place], name, tools)))
    return calls


def _read_parameters(text: str, name: str, tools: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """`<parameter=KEY>VALUE</parameter>`, any number; None where one does not end."""
    found = {}
    place = 0
    while (begin := text.find(_PARAMETER, place)) >= 0:
        middle = text.find(">", begin, begin + _LONGEST_NAME)
        end = text.find(_PARAMETER_END, middle)
        if middle < 0 or end < 0:
            return None
        key, value = text[begin + len(_PARAMETER) : middle], text[middle + 1 : end]
        found[key] = _convert(value.removeprefix("\n").removesuffix("\n"), name, key, tools)
        place = end
    return found


def _read_keyed(text: str, tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """`NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>`, any number of pairs."""
    place = text.find(_KEY)
    name, found = text[:place].strip(), {}
    while (begin := text.find(_KEY, place)) >= 0:
        places = [begin]
        for mark in (_KEY_END, _VALUE, _VALUE_END):
            places.append(text.find(mark, places[-1]))
            if places[-1] < 0:
                return _NOT_A_CALL
        _, key_end, value, place = places
        if text[key_end + len(_KEY_END) : value].strip():
            return _NOT_A_CALL
        key = text[begin + len(_KEY) : key_end]
        found[key] = _convert(text[value + len(_VALUE) : place], name, key, tools)
    return [(name, found)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _skip_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \n\t\r":
        place += 1
    return place


def _read_json(text: str) -> list[Any]:
    """The JSON values in a text that has nothing else but separators. Raises ValueError if it has, RecursionError."""
    values, place = [], 0
    while place < len(text):
        if text[place] in " \n\t\r;,":
            place += 1
            continue
        value, place = _DECODER.raw_decode(text, place)
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
    schema = schema if isinstance(schema, dict) else {}
    kind, choices = schema.get("type"), schema.get("enum")
    kinds = kind if isinstance(kind, list) else [kind]
    chosen = isinstance(choices, list) and text in choices
    if chosen or ("string" in kinds and (text != "null" or "null" not in kinds)):
        return text
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return text
