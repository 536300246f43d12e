"""Turns pydantic's errors about settings into messages for the user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError

from engine.options.base import Options
from engine.protocol.text import did_you_mean

_EXPECTATIONS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "string_type": "must be text",
}
"""What pydantic's errors ask for where its own words would name a type of Python."""
_LONGEST = 80
"""Characters of a value that are shown."""
_NAMED = 4
"""Settings that are named of those a mapping may have."""


def explain(error: ValidationError, model: type[Options]) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """`(keys, code, message)`: the place, code and message of each error.

    A union reports one error per branch for the same place; they become one sentence.
    """
    by_place: dict[tuple[str | int, ...], list[Any]] = {}
    for detail in error.errors():
        place = detail["loc"]
        own = place[-1:] if detail["type"] == "extra_forbidden" else ()  # what the user wrote, whatever it looks like
        above = place[: len(place) - len(own)]
        keys = (*(key for key in above if isinstance(key, int) or not _is_branch(key)), *own)
        by_place.setdefault(keys, []).append(detail)
    for keys, details in by_place.items():
        if any(other[: len(keys)] == keys and len(other) > len(keys) for other in by_place):
            continue  # a list that is not `auto` either: the errors inside the list say more
        kinds = {detail["type"] for detail in details}
        got = details[0]["input"]
        if kinds == {"extra_forbidden"}:
            yield (
                keys,
                "profile.unknown_key",
                f"unknown key{did_you_mean(str(keys[-1]), _find_owner(model, keys).model_fields)}",
            )
        elif kinds == {"missing"}:
            yield keys, "profile.missing", "is required"
        else:
            owner = _find_owner(model, (*keys, ""))
            parts = dict.fromkeys(_describe_expectation(detail, owner) for detail in details)
            expected = " or ".join(parts).replace(" or must be ", " or ")
            hint = did_you_mean(str(got), _list_choices(details))
            yield keys, "profile.value", f"{expected}, not {show_value(got)}{hint}"


def show_value(value: Any) -> str:
    """A value as it is written in a profile, shortened if it is long."""
    if isinstance(value, (dict, list, bool)) or value is None:
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):  # its keys are dates or lists, or it contains itself
            text = "this mapping" if isinstance(value, dict) else "this list"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _describe_expectation(detail: Any, owner: type[Options]) -> str:
    """What a value must be. `owner` is the model of the settings that it stands for, if it stands for settings."""
    if detail["type"] == "literal_error":
        return f"must be {detail['ctx']['expected'].replace(chr(39), '')}"
    if detail["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return f"must be a mapping with {', '.join(_name_settings(owner))}"
    if detail["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    if (text := _EXPECTATIONS.get(detail["type"])) is not None:
        return text
    said = str(detail["msg"]).removeprefix("Input ").removeprefix("Value error, ").removeprefix("String ")
    return said.replace("should be", "must be").replace("should match", "must match")


def _name_settings(owner: type[Options]) -> list[str]:
    """The first settings of a model, as a reminder of what it has."""
    names = list(owner.model_fields)
    return [*names[:_NAMED], *(["…"] if len(names) > _NAMED else [])]


def _list_choices(details: list[Any]) -> list[str]:
    """The values that are allowed."""
    expected = (detail["ctx"]["expected"] for detail in details if detail["type"] == "literal_error")
    return [word.strip("' ") for words in expected for word in words.replace(" or ", ", ").split(", ")]


def _is_branch(key: str) -> bool:
    """Whether a key in `loc` is pydantic's name of a branch of a union: `int`, `literal['auto']`, `list[str]`,
    `constrained-int`, `TokenizerOptions` …"""
    return (
        "[" in key
        or key in ("int", "str", "float", "bool", "none")
        or key.startswith("constrained-")
        or key.endswith("Options")
    )


def _find_owner(model: type[Options], keys: tuple[str | int, ...]) -> type[Options]:
    """The options model that the last key belongs to."""
    for key in keys[:-1]:
        if isinstance(key, int) or key not in model.model_fields:
            continue
        for candidate in _find_models(model.model_fields[key].annotation):
            model = candidate
    return model


def _find_models(annotation: Any) -> Iterator[type[Options]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for argument in get_args(annotation):
        yield from _find_models(argument)
