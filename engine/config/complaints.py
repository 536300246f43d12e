"""Turns pydantic's errors about settings into messages for the user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError

from engine.options.base import Options
from engine.protocol.text import did_you_mean


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
            expected = " or ".join(map(_describe_expectation, details))
            yield keys, "profile.value", f"{expected}, not {got!r}{did_you_mean(str(got), _list_choices(details))}"


def _describe_expectation(detail: Any) -> str:
    if detail["type"] == "literal_error":
        return f"must be {detail['ctx']['expected'].replace(chr(39), '')}"
    return str(detail["msg"]).removeprefix("Input ").removeprefix("Value error, ").replace("should be", "must be")


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
