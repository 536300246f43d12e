"""The settings that may change while a run is running, for those who ask for a change and those who make it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from engine.config.profile import SECTIONS

SETTABLE = (
    "training.learning_rate",
    "training.max_grad_norm",
    "training.max_steps",
    "evaluation.every_steps",
    "checkpoint.every_steps",
)


def check(key: str, value: Any) -> None:
    """Raises ValueError, in words, when the setting cannot have this value, whatever the rest of the profile says."""
    assert key in SETTABLE
    name, _, field = key.partition(".")
    section = SECTIONS[name]
    assert not isinstance(section, dict)
    try:
        section.model_validate({field: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        raise ValueError(f"{key} {message}, not {value!r}") from None


def get_help(key: str) -> str:
    """What the setting means, in the words of its declaration."""
    name, _, field = key.partition(".")
    section = SECTIONS[name]
    assert not isinstance(section, dict)
    return section.model_fields[field].description or ""
