"""Forecasts of memory and time as they are kept in the home, and what they say about a host. Torch-free.

`engine.training.forecast` makes them; the supervisor reads them when a run is submitted. A forecast is kept under a
hash of the settings that it depends on, so that changed settings have none until one is made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.messages import Device, Problem

FORMAT = 3
"""Part of the hash: forecasts of another format are made anew."""
_SECTIONS = ("model", "adapter", "data", "method", "training", "launch", "checkpoint", "evaluation", "generation")
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "cockpit")
KEPT = 200
"""Forecasts that are kept."""
SUGGESTED = 3
"""Changes that a refusal names."""
_KEY = 24
"""Digits of a key."""


@dataclass(frozen=True)
class Place:
    """The devices that a run is forecast for: of `kind` (`cuda`, `cpu` …), called `label`, each with `card_bytes`; None
    where that is unknown."""

    kind: str
    label: str
    card_bytes: int | None = None


def find_place(cards: Sequence[Device]) -> Place:
    """The place that these devices are; the CPU without any."""
    if not cards:
        return Place("cpu", "CPU")
    sizes = [card.memory_total for card in cards if card.memory_total is not None]
    kind = "cuda" if cards[0].kind in ("nvidia", "amd") else cards[0].kind
    return Place(kind, cards[0].name or kind, min(sizes) if len(sizes) == len(cards) else None)


def find_largest(cards: Sequence[Device]) -> int | None:
    """The memory of the largest card; None where one does not tell its memory."""
    sizes = [card.memory_total for card in cards if card.memory_total is not None]
    return max(sizes) if sizes and len(sizes) == len(cards) else None


def folder(home: Home) -> Path:
    return home.root / "forecasts"


def compute_key(profile: Profile, place: Place, cards: int) -> str:
    """The name of the forecast of this profile on `cards` devices of a place, with the installed libraries."""
    settings = profile.to_dict()
    parts = {name: settings[name] for name in _SECTIONS} | {
        "directory": str(profile.directory),
        "place": [place.kind, place.label, place.card_bytes],
        "cards": cards,
        "libraries": _list_versions(),
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_KEY]


@functools.cache
def _list_versions() -> tuple[str, ...]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return tuple(found)


def stamp(paths: Iterable[Path]) -> list[list[Any]]:
    """Path, size and time of change of each file or folder that a forecast was made from. Raises OSError."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def is_current(forecast: dict[str, Any], inputs: str = "inputs") -> bool | None:
    """Whether the rows and the base (`base_inputs`: the base) are as they were when the forecast was made; None where
    that is unknown."""
    if not forecast.get(inputs):
        return None
    try:
        return bool(stamp(Path(path) for path, *_ in forecast[inputs]) == forecast[inputs])
    except (OSError, TypeError, ValueError):
        return False


def read(home: Home, key: str) -> dict[str, Any] | None:
    """The kept forecast; None if there is none."""
    try:
        content = json.loads((folder(home) / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def keep(home: Home, key: str, forecast: dict[str, Any]) -> None:
    """Keep a forecast, and remove the oldest ones. One that cannot be written is made again next time."""
    try:
        place = make_private(folder(home))
        write_private(place / f"{key}.json", json.dumps(forecast | {"format": FORMAT}).encode())
        kept = sorted(place.glob(f"{'?' * _KEY}.json"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-KEPT]:
            file.unlink(missing_ok=True)
    except OSError:
        pass


def judge(needed: int, error_percent: float, room: int | None) -> str:
    """`fits`; `near`, where it does within the error or not; `too_large`, where it does not even then; `unknown` for an
    unknown room."""
    if room is None:
        return "unknown"
    error = needed * error_percent / 100
    if needed - error > room:
        return "too_large"
    return "near" if needed + error > room else "fits"


def judge_all(forecast: dict[str, Any], card: int | None, host: int | None, disk: int | None = None) -> str:
    """The worst verdict over the memory of a card, that of the host, and the free disk of the run's directory, in
    bytes; `host` and `disk` are None for a host that is not this one, of which nothing is said."""
    error = forecast["error_percent"]
    verdicts = [] if host is None else [judge(forecast["host_bytes"], error, host)]
    if forecast["device_bytes"]:
        verdicts.append(judge(forecast["device_bytes"], error, card))
    verdicts.append(judge_disk(forecast, disk))
    return next((each for each in ("too_large", "near", "unknown") if each in verdicts), "fits")


def judge_disk(forecast: dict[str, Any], disk: int | None) -> str:
    """`too_large` where the checkpoints that are kept at the same time do not fit; `near` where not all that the run
    may write does."""
    if disk is None:
        return "fits"
    if _count_kept_bytes(forecast) > disk:
        return "too_large"
    return "near" if forecast["disk_bytes"] > disk else "fits"


def _count_kept_bytes(forecast: dict[str, Any]) -> int:
    return int(forecast.get("checkpoint_bytes", 0) * forecast.get("checkpoints", 0))


def read_free_disk(home: Home) -> int | None:
    """The free bytes of the disk that runs are on; None where the system does not tell."""
    try:
        return shutil.disk_usage(home.runs if home.runs.is_dir() else home.root).free
    except OSError:
        return None


def is_hopeless(forecast: dict[str, Any], card: int | None, host: int | None) -> bool:
    """Whether a run cannot fit for certain: not with its weights, gradients and optimiser states alone
    (`exceeds_floor`); or by a forecast of its real rows, without settings whose memory is guessed, not with the
    smallest micro-batch either, and not into all memory of the largest card, or of a host without cards. All else is
    worth no more than a warning."""
    if exceeds_floor(forecast, card, host):
        return True
    least = forecast.get("least")
    if not forecast.get("certain") or not least:
        return False
    needed, room = (least["device_bytes"], card) if forecast["device_bytes"] else (least["host_bytes"], host)
    return bool(judge(needed, forecast["error_percent"], room) == "too_large")


def exceeds_floor(forecast: dict[str, Any], card: int | None, host: int | None) -> bool:
    """Whether what the run takes whatever its rows, batches and kernels are is more than all memory of the largest
    card, or of a host without cards. The forecast's own error does not count: nothing of that is guessed."""
    floor = forecast.get("floor")
    if not floor:
        return False
    needed, room = (floor["device_bytes"], card) if forecast["device_bytes"] else (floor["host_bytes"], host)
    return bool(room is not None and needed > room)


def describe_lack(forecast: dict[str, Any], card: int | None, host: int | None, disk: int | None = None) -> str:
    """What is needed and what is there, for a run that does not fit, or hardly."""
    error, lacking = forecast["error_percent"], []
    if forecast["device_bytes"] and judge(forecast["device_bytes"], error, card) not in ("fits", "unknown"):
        lacking.append((forecast["device_bytes"], card, "a card"))
    if host is not None and judge(forecast["host_bytes"], error, host) not in ("fits", "unknown"):
        lacking.append((forecast["host_bytes"], host, "the host's memory"))
    found = [
        f"it needs about {format_size(needed)} ±{format_size(int(needed * error / 100))} of {format_size(room or 0)} "
        f"of {whose}"
        for needed, room, whose in lacking
    ]
    if judge_disk(forecast, disk) != "fits":
        found.append(f"it writes up to {format_size(forecast['disk_bytes'])}, and {format_size(disk or 0)} are free")
    return "; ".join(found)


NEAR_HINT = "`cockpit forecast` lists what takes the memory, `cockpit fit` what takes less"


def describe_near(forecast: dict[str, Any], card: int | None, host: int | None, disk: int | None = None) -> str:
    """The warning of a run that hardly fits, or does not; empty for one that fits."""
    if judge_all(forecast, card, host, disk) not in ("near", "too_large"):
        return ""
    return f"the run hardly fits, or does not: {describe_lack(forecast, card, host, disk)}"


def explain_refusal(forecast: dict[str, Any], card: int | None, host: int | None) -> Problem:
    """The problem of a run that cannot fit."""
    changes, floor = forecast.get("changes"), forecast.get("floor") or {}
    alone = format_size(floor.get("device_bytes") or floor.get("host_bytes") or 0)
    room = format_size((card if forecast["device_bytes"] else host) or 0)
    lack = describe_lack(forecast | (forecast.get("least") or {}), card, host)
    return Problem(
        code="memory.will_not_fit",
        title="This run does not fit into memory",
        cause=f"its weights, gradients and optimiser states alone take {alone}, and there are {room}"
        if exceeds_floor(forecast, card, host)
        else lack,
        hint=f"change one of these: {describe_changes(changes)}"
        if changes
        else "`cockpit fit PROFILE --cards auto` looks for settings that fit",
    )


def describe_changes(changes: list[dict[str, Any]]) -> str:
    """The cheapest of the changes that make a run fit."""
    return "; or ".join(describe_change(each) for each in changes[:SUGGESTED])


def explain_full_disk(forecast: dict[str, Any], disk: int, place: Path) -> Problem:
    """The problem of a run whose checkpoints cannot fit on the disk of `place`."""
    each, count = forecast["checkpoint_bytes"], forecast["checkpoints"]
    fewer, lacking = disk // each if each else 0, format_size(count * each - disk)
    return Problem(
        code="disk.low",
        title="The checkpoints of this run do not fit on the disk",
        cause=f"{count} of {format_size(each)} are kept at the same time, and {format_size(disk)} are free in {place}",
        hint=f"set checkpoint.keep to {fewer}, or free {lacking} of disk space"
        if fewer
        else f"free {lacking} of disk space, or set COCKPIT_HOME to a folder on a larger disk",
    )


def describe_change(change: dict[str, Any]) -> str:
    """A change of settings that makes a run fit, and what it needs then."""
    settings = " with ".join(f"{key}={_write(value)}" for key, value in change["settings"].items())
    return f"{settings} ({format_size(change['device_bytes'] or change['host_bytes'])})"


def _write(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def format_size(size: float) -> str:
    """A size in GB with one digit, in MB below one."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.3g} h"


def summarize(forecast: dict[str, Any]) -> str:
    """`14.2 of 24 GB ±0.9 a card · 31 GB host · 12 GB disk · about 3 h`."""
    error = forecast["error_percent"] / 100
    device, card = forecast["device_bytes"], forecast.get("card_bytes")
    parts = []
    if device:
        room = f"of {card / 1e9:.4g} GB" if card else "GB"
        parts.append(f"{device / 1e9:.1f} {room} ±{device * error / 1e9:.1f} a card")
    host = forecast["host_bytes"]
    parts.append(f"{format_size(host)}{'' if device else f' ±{format_size(host * error)}'} host")
    parts += [f"{format_size(forecast['disk_bytes'])} disk", format_seconds(forecast["seconds"])]
    return " · ".join(parts)
