"""Grids of runs: the same profile with every combination of some settings' values. A grid is a file in the home that
names its runs."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from cockpit.language.translate import tr
from engine.protocol.home import Home, make_private, write_private

MOST = 200
"""Runs of a grid."""
_NAME = re.compile(r"[\w.-]+")
_OPEN, _CLOSE = "[{(", "]})"


@dataclass
class Member:
    """A run of a grid, with the settings by which it differs from the others."""

    settings: dict[str, str]
    run: str = ""


@dataclass
class Grid:
    """`axes` are the settings with their values, as they were written. `measure` is the metric by which the runs are
    compared; `rises` says whether more of it is better."""

    name: str
    profile: str
    axes: dict[str, list[str]]
    measure: str = "eval/loss"
    rises: bool = False
    created: float = field(default_factory=time.time)
    runs: list[Member] = field(default_factory=list)


_FIELDS = [each.name for each in fields(Grid)]


def parse_axis(text: str) -> tuple[str, list[str]]:
    """The setting and the values of `K=V1,V2`; commas inside brackets and quotes belong to a value. Raises
    ValueError."""
    key, equals, listed = text.partition("=")
    values = [value.strip() for value in _split(listed)]
    if not equals or not key.strip() or not all(values):
        raise ValueError(tr("--grid {text}: write it as section.key=value,value,…", text=text))
    if len(set(values)) < len(values):
        raise ValueError(tr("--grid {text}: a value is there twice", text=text))
    return key.strip(), values


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in _OPEN) - (letter in _CLOSE)
            if letter == "," and depth <= 0:
                parts.append("")
                continue
        parts[-1] += letter
    return parts


def combine(axes: Mapping[str, Sequence[str]]) -> list[Member]:
    """Every combination, the last axis varying fastest. Raises ValueError for more than `MOST`."""
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise ValueError(tr("the grid has {count:,} runs; at most {MOST} are queued at once", count=count, MOST=MOST))
    return [Member(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def folder(home: Home) -> Path:
    return home.root / "grids"


def free_name(home: Home, name: str) -> str:
    """This name, or with a number behind it the first that no grid has."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(each for each in names if not (folder(home) / f"{each}.json").exists())


def save(home: Home, grid: Grid) -> None:
    """Write the grid's file. Raises OSError."""
    text = json.dumps(asdict(grid), ensure_ascii=False, indent=1)
    write_private(make_private(folder(home)) / f"{grid.name}.json", text.encode())


def load(home: Home, name: str) -> Grid:
    """The grid of that name, or the newest for `last`. Raises ValueError."""
    known = list_grids(home)
    found = known[:1] if name == "last" else [grid for grid in known if grid.name == name]
    if not found:
        if not known:
            raise ValueError(tr("there are no grids yet: cockpit train PROFILE --grid K=V,V"))
        names = ", ".join(grid.name for grid in known[:10])
        raise ValueError(tr("there is no grid {name}; known are {names}", name=name, names=names))
    return found[0]


def list_grids(home: Home) -> list[Grid]:
    """All grids, the newest first. Damaged files are left out."""
    found = []
    for path in folder(home).glob("*.json"):
        try:
            grid = read(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue
        if grid.name == path.stem and _NAME.fullmatch(grid.name):
            found.append(grid)
    return sorted(found, key=lambda grid: -grid.created)


def read(content: Mapping[str, Any]) -> Grid:
    """A grid from its file's content; what a newer version has added is left out. Raises ValueError."""
    try:
        return msgspec.convert({name: content[name] for name in _FIELDS if name in content}, Grid)
    except TypeError as error:
        raise ValueError(tr("it is no grid: {error}", error=error)) from None
