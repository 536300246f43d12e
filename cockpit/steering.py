"""Changing a running run's settings: what they are called here, and what a line that was typed says."""

from __future__ import annotations

from engine.config.settable import check_value, get_help

TITLES = {
    "training.learning_rate": "Learning rate",
    "evaluation.every_steps": "Evaluation cadence",
    "checkpoint.every_steps": "Checkpoint cadence",
    "training.max_grad_norm": "Gradient clipping",
    "training.max_steps": "Last step",
}
NEVER = {
    "training.learning_rate": "a learning rate",
    "training.max_grad_norm": "a norm",
    "training.max_steps": "a number of steps",
}
"""Settings that need a value, and what of; the others may be none."""
NONE = "none"


def meaning(key: str) -> str:
    """What the setting says, in a line or two."""
    if key == "training.learning_rate":
        return "the schedule's new base from the next step on, its shape goes on"
    return get_help(key) + ("" if key in NEVER else f" Write {NONE} for none.")


def value_of(key: str, text: str, step: int) -> int | float | None:
    """The value that was typed, for a run at `step`. Raises ValueError, in words."""
    text = text.strip().replace(",", "")
    if text.lower() == NONE and key not in NEVER:
        return None
    value: int | float
    try:
        value = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text} is not {NEVER.get(key, 'a number of steps')}") from None
    if key == "training.learning_rate" and not 0 < value < 1:
        raise ValueError(f"{text} is no learning rate: write a number above 0 and below 1, like 2e-4")
    check_value(key, value)
    if key == "training.max_steps" and value < step:
        raise ValueError(f"step {step:,} is done already: write {step} or more")
    return value
