"""The settings in which two profiles differ. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cockpit.profiles.yaml_edit import read_yaml, to_flow_yaml

_COPIED = re.compile(r"^# copied from (\S+)", re.MULTILINE)
UNSET = "–"
"""What stands for a setting that a file does not have."""


class Difference(NamedTuple):
    key: str
    theirs: str
    ours: str


def mark_copy(text: str, parent: str) -> str:
    """The text with a line that names the profile it was copied from."""
    return text if _COPIED.search(text) else f"# copied from {parent}\n{text}"


def find_parent(text: str) -> str:
    """The name of the profile that this one was copied from; empty if it does not say so."""
    found = _COPIED.search(text)
    return found[1] if found else ""


def compare(theirs: str, ours: str) -> list[Difference]:
    """The settings of two texts that differ, in the order of ours, then of theirs."""
    before, now = _flatten(read_yaml(theirs)), _flatten(read_yaml(ours))
    keys = dict.fromkeys([*now, *before])
    return [
        Difference(key, before.get(key, UNSET), now.get(key, UNSET)) for key in keys if before.get(key) != now.get(key)
    ]


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            found |= _flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = to_flow_yaml(value)
    return found
