"""The settings of a running run that can be changed: their titles, and how typed text becomes a value."""

from __future__ import annotations

from cockpit.language.translate import tr
from engine.config.settable import check_value, get_help

TITLES = {
    "training.learning_rate": "Learning rate",
    "evaluation.every_steps": "Evaluation interval",
    "checkpoint.every_steps": "Checkpoint interval",
    "training.max_grad_norm": "Gradient clipping",
    "training.max_steps": "Last step",
}
VALUE_NAMES = {
    "training.learning_rate": "a learning rate",
    "training.max_grad_norm": "a norm",
    "training.max_steps": "a number of steps",
}
"""Settings that need a value, and what to call it. The others may be none."""
NONE = "none"


def describe_setting(key: str) -> str:
    """What the setting does, in one or two lines."""
    if key == "training.learning_rate":
        return tr("the new base of the schedule from the next step on; its shape stays")
    return get_help(key)


def parse_value(key: str, text: str, step: int) -> int | float | None:
    """The value of typed text, for a run at `step`. Raises ValueError with a message for the user."""
    text = text.strip().replace(",", "")
    if text.lower() == NONE and key not in VALUE_NAMES:
        return None
    value: int | float
    try:
        value = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(
                tr("{text} is not {VALUE_NAMES}", text=text, VALUE_NAMES=tr(VALUE_NAMES.get(key, "a number of steps")))
            ) from None
    if key == "training.learning_rate" and not 0 < value < 1:
        raise ValueError(tr("{text} is not a learning rate: write a number above 0 and below 1, like 2e-4", text=text))
    check_value(key, value)
    if key == "training.max_steps" and value < step:
        raise ValueError(tr("step {step:,} is done already: write {step} or more", step=step))
    return value
