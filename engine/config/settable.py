"""The settings that may be changed while a run is running."""

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


def check_value(key: str, value: Any) -> None:
    """Raises ValueError, with a message for the user, when the setting can never have this value."""
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
    """The help text of the setting."""
    name, _, field = key.partition(".")
    section = SECTIONS[name]
    assert not isinstance(section, dict)
    return section.model_fields[field].description or ""
