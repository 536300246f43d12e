"""Values of cells: tables hold lists and mappings as text, labels in many spellings, and nulls for absent keys."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

_JUDGED_WORDS = {
    "true": True, "false": False, "good": True, "bad": False, "desirable": True, "undesirable": False,
    "chosen": True, "rejected": False, "accepted": True,
}  # fmt: skip
_JUDGED = {"1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False, **_JUDGED_WORDS}
JUDGEMENTS = "true/false, 1/0, yes/no, good/bad, desirable/undesirable, chosen/rejected"
"""The labels that `read_label` knows, for a message."""

_UNREADABLE = (ValueError, SyntaxError, MemoryError, RecursionError, TypeError)


def parse_cell(value: Any) -> Any:
    """The list or mapping that a cell holds as text: as JSON, or as Python writes it (which `pandas` puts into CSV).
    Any other value is returned unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass
    try:
        found = ast.literal_eval(value.strip())
    except _UNREADABLE:
        return value
    return found if isinstance(found, list | dict) else value


def parse_turns(value: Any) -> Any:
    """The turns that a cell holds as text. A text that is anything else, such as a reply in JSON, is returned
    unchanged."""
    found = parse_cell(value)
    return found if found is value or is_turns(found) else value


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, each with a role and its words or calls."""
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value) and len(value) > 1


def parse_together(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The row with the turns that these cells hold as text, if each of them that is there holds turns. (A reply may be
    JSON itself; a table whose question is text holds no turns.)"""
    there = [name for name in names if row.get(name) not in (None, "")]
    found = {name: parse_turns(row[name]) for name in there}
    if all(found[name] is row[name] for name in there) or not all(is_turns(found[name]) for name in there):
        return row
    return {**row, **found}


def find_filled(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these columns that holds something; else the first that is not null (a table has empty text for
    null); None if all are null."""
    there = [name for name in names if row.get(name) is not None]
    return next((name for name in there if row[name] != ""), there[0] if there else None)


def read_label(value: Any) -> bool | None:
    """Whether a label says that a reply is good; None for a value that is no such label."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    return _JUDGED.get(value.strip().lower()) if isinstance(value, str) else None


def is_bad_word(value: Any) -> bool:
    """Whether a label can only mean that something is false or bad. (A number may be a class.)"""
    if isinstance(value, str):
        return _JUDGED_WORDS.get(value.strip().lower()) is False
    return value is False


def drop_nulls(value: Any) -> Any:
    """The value without the keys that are null, at any depth."""
    if isinstance(value, dict):
        return {key: drop_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [drop_nulls(each) for each in value]
    return value


def without_padding(arguments: Mapping[str, Any], parameters: Any) -> dict[str, Any]:
    """A call's arguments without the nulls that the function's schema does not allow.

    Tables give all calls of a column the same keys, and fill those that a call does not have with null.
    """
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict) or None not in arguments.values():
        return dict(arguments)
    return {
        name: value
        for name, value in arguments.items()
        if value is not None or (name in properties and _allows_null(properties[name]))
    }


def _allows_null(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    kinds = schema.get("type")
    if kinds is None:
        return any(schema.get(key) for key in ("anyOf", "oneOf", "allOf", "$ref", "enum")) or not schema
    return kinds == "null" or (isinstance(kinds, list) and "null" in kinds) or schema.get("nullable") is True
