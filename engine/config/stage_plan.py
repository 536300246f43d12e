"""Which stages a profile has, and which of them are affected by changed settings. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from engine.config.profile import Profile
from engine.protocol.stages import EVALUATE, EXPAND, EXPORT, STAGES, TRAIN

_LATE_SETTINGS = {
    EXPORT: ("name", "description", "limits", "export"),
    EVALUATE: ("evaluation", "generation", "data.test"),
}
"""Stage -> sections and keys that no earlier stage reads. All other settings affect training."""


def list_stages(profile: Profile) -> list[str]:
    """The stages of this profile, in order."""
    optional = {
        EXPAND: profile.data.expand is not None,
        EVALUATE: is_evaluated_after(profile),
        EXPORT: profile.export.kind != "none",
    }
    return [stage for stage in STAGES if optional.get(stage, True)]


def find_first_touched(settings: Iterable[str]) -> str:
    """The first stage that must be done again after these settings (`section.key…`) were changed: `train`, `evaluate`
    or `export`."""
    found = EXPORT
    for name in settings:
        stage = next((stage for stage, late in _LATE_SETTINGS.items() if is_within(name, late)), TRAIN)
        found = min(found, stage, key=STAGES.index)
    return found


def is_within(name: str, keys: Iterable[str]) -> bool:
    """Whether the setting `name` is one of `keys`, or part of one."""
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def is_evaluated_after(profile: Profile) -> bool:
    """Whether the best checkpoint is evaluated after training: on test rows, on benchmarks, or on both."""
    return has_test_rows(profile) or profile.evaluation.benchmarks is not None


def has_test_rows(profile: Profile) -> bool:
    """Whether the profile has test rows for a final evaluation."""
    data = profile.data
    return bool(data.test or (data.split and data.split.test))
