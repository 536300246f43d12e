"""Settings that can change while a run is running, and their record in checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.config.profile import Profile
from engine.config.settable import SETTABLE
from engine.protocol.journal import Ledger

SHAPE = ("training.micro_batch", "training.tokens_per_batch", "training.accumulation")
"""What makes up a micro-batch and a global batch."""
SAVED = (*SETTABLE, "training.epochs", *SHAPE)
"""Settings that a checkpoint records: the settable ones, and those that running out of memory or a resume may
change."""
_LINKED = (
    {"training.max_steps", "training.epochs"},
    set(SHAPE),
)
"""Settings that only have a meaning together: a profile that changes one of a group replaces the whole group."""
FILE = "steering.json"
"""In a checkpoint's `trainer/`: `describe_settings` makes it, `replay` reads it."""
SKIPPED = "skip"
"""Name of the ledger entry whose `new` lists the numbers of rows that are no longer trained."""


def change_setting(profile: Profile, key: str, value: Any) -> Profile:
    """The profile with one setting changed. Raises ValueError for a setting that cannot change while running, or an
    invalid value."""
    if key not in SETTABLE:
        raise ValueError(f"{key} cannot change while a run is running; these can: {', '.join(SETTABLE)}")
    return replace_setting(profile, key, value)


def replace_setting(profile: Profile, key: str, value: Any) -> Profile:
    """The profile with any one setting replaced. Raises ValueError for an invalid value."""
    name, _, field = key.partition(".")
    section = getattr(profile, name)
    try:
        section = type(section).model_validate(section.model_dump() | {field: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        raise ValueError(f"{key} {message}, not {value!r}") from None
    return dataclasses.replace(profile, **{name: section})


def get_setting(profile: Profile, key: str) -> Any:
    """The value of `section.field`."""
    name, _, field = key.partition(".")
    return getattr(getattr(profile, name), field)


def describe_settings(
    submitted: Profile, live: Profile, skipped: Collection[int], plan: Sequence[int] | None = None
) -> str:
    """The current settings, their values in the submitted profile, the skipped rows, and what a global batch in tokens
    is, for the file `FILE`."""
    document = {
        "submitted": {key: get_setting(submitted, key) for key in SAVED},
        "live": {key: get_setting(live, key) for key in SAVED},
        "skipped": sorted(skipped),
        "plan": plan,
    }
    return json.dumps(document)


def replay(path: Path, submitted: Profile, later: Sequence[Ledger] = ()) -> tuple[Profile, set[int]]:
    """The profile and the skipped rows at a checkpoint, with the `later` changes of the ledger applied.

    A setting that the profile itself has changed since (`cockpit resume --set`) keeps the profile's value.
    """
    kept = json.loads(path.read_text())
    values: dict[str, Any] = kept["live"]
    skipped = set(kept["skipped"])
    for entry in later:
        if entry.name in SAVED:
            values[entry.name] = entry.new
        elif entry.name == SKIPPED:
            skipped |= set(entry.new)
    changed = {key for key in SAVED if get_setting(submitted, key) != kept["submitted"].get(key)}
    for group in _LINKED:
        if changed & group:
            changed |= group
    live = submitted
    for key, value in values.items():
        if key not in changed and key in SAVED:
            live = replace_setting(live, key, value)
    return live, skipped
