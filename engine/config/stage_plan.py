"""Which stages a profile asks for, and which of them a change of settings touches. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from engine.config.profile import Profile
from engine.protocol.stages import EVALUATE, EXPAND, EXPORT, STAGES, TRAIN

_LATE = {EXPORT: ("name", "description", "limits", "export"), EVALUATE: ("evaluation", "generation", "data.test")}
"""Stage -> settings that have no part in any stage before it, by section or key. All others take part in training."""


def list_stages(profile: Profile) -> list[str]:
    """The stages that this profile has, in their order."""
    wanted = {
        EXPAND: profile.data.expand is not None,
        EVALUATE: has_test_rows(profile),
        EXPORT: profile.export.kind != "none",
    }
    return [stage for stage in STAGES if wanted.get(stage, True)]


def find_first_touched(settings: Iterable[str]) -> str:
    """The first stage that must be done again when these settings (`section.key…`) have changed: `train`, `evaluate` or
    `export`."""
    found = EXPORT
    for name in settings:
        stage = next((stage for stage, late in _LATE.items() if is_within(name, late)), TRAIN)
        found = min(found, stage, key=STAGES.index)
    return found


def is_within(name: str, keys: Iterable[str]) -> bool:
    """Whether the setting `name` is one of `keys`, or part of one."""
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def has_test_rows(profile: Profile) -> bool:
    """Whether rows are kept for a last evaluation."""
    data = profile.data
    return bool(data.test or (data.split and data.split.test))
