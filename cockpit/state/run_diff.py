"""In what the settings of two runs differ, and which run another one follows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from engine.protocol.messages import Run


class Difference(NamedTuple):
    """One setting; `None` stands for one that is not there, too."""

    key: str
    before: Any
    now: Any


def find_parent(run: Run, runs: Iterable[Run]) -> Run | None:
    """The run before this one of the same profile or, without one, of the same name."""
    older = [other for other in runs if other.created < run.created and other.id != run.id and other.kind == run.kind]
    for same in ("profile", "name"):
        found = [other for other in older if getattr(run, same) and getattr(other, same) == getattr(run, same)]
        if found:
            return max(found, key=lambda other: other.created)
    return None


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key. Lists are values."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{name}.")
        else:
            found[name] = value
    return found


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The settings that differ, in the order of the later profile."""
    old, new = flatten(before), flatten(now)
    keys = dict.fromkeys([*new, *old])
    return [Difference(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
