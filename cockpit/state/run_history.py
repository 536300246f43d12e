"""What happened to a run, read from what its journal told: changes and their marks, trouble, thresholds, replies. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cockpit.state.app_state import Entry, RunTold
from cockpit.state.formatting import number
from engine.protocol.messages import Run
from engine.protocol.states import PAUSED

SHORT = {
    "training.learning_rate": "lr",
    "training.max_grad_norm": "clip",
    "training.max_steps": "end",
    "evaluation.every_steps": "eval",
    "checkpoint.every_steps": "save",
    "training.micro_batch": "batch",
    "training.accumulation": "batch",
    "training.epochs": "end",
    "pause": "pause",
    "skip": "skip",
    "rollback": "back",
    "early stopping": "early",
}
"""Entry of the ledger -> its name on the chart; others are listed but not marked."""
ASKED = "asked"
PASSING = ("disk low", "host memory", "host CPU", "device too hot")
"""How the reasons begin that pass by themselves: the run goes on when they are over."""

_HELD = " is held back: "
"""In the warning that goes with a bad batch."""

Threshold = tuple[str, str, float]
"""Metric, comparison, bound."""
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


# ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def marks(told: RunTold) -> tuple[tuple[int, str], ...]:
    """Step and short name of what changed while the run was running, in ascending steps, each once."""
    found = {(entry["step"], SHORT[entry["name"]]) for entry in told.ledger if entry["name"] in SHORT}
    return tuple(sorted(found))


def settings(run: Run, told: RunTold) -> dict[str, Any]:
    """The settings that may change, as they stand; those that nothing is known of are absent."""
    start = told.start or {}
    values: dict[str, Any] = dict(start.get("facts", {}).get("settings", {}))
    since = start.get("time", 0.0)
    values |= {entry["name"]: entry.get("new") for entry in told.ledger if entry.get("time", 0.0) >= since}
    if run.max_steps:
        values["training.max_steps"] = run.max_steps
    return values


def written(value: Any) -> str:
    """A setting's value, short."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return f"{len(value)} rows"
    return str(value)


# ── trouble ───────────────────────────────────────────────────────────────────────────────────────────────────────


def held(run: Run, told: RunTold) -> Entry | None:
    """The bad batch that the run waits with; None when there is none."""
    batch = told.bad_batch
    if run.state != PAUSED or batch is None or not told.ledger:
        return None
    pause = next((entry for entry in reversed(told.ledger) if entry["name"] in ("pause", "continue")), None)
    waits = pause is not None and pause["name"] == "pause"
    return batch if waits and pause and (pause["step"], pause.get("new")) == (batch["step"], batch["reason"]) else None


def way_back(told: RunTold, step: int) -> int | None:
    """The newest checkpoint before `step` that is still there: where a roll-back goes."""
    there: set[int] = set()
    for entry in told.checkpoints:
        there -= set(entry.get("removed", ()))
        there.add(entry["step"])
    return max((each for each in there if each < step), default=None)


def rows_of(batch: Entry) -> list[dict[str, Any]]:
    """The rows of a bad batch, those without a finite loss first, then the largest losses."""
    return sorted(batch["rows"], key=lambda row: (row.get("loss") is not None, -(row.get("loss") or 0.0), row["row"]))


def advice(run: Run, told: RunTold) -> tuple[str, str]:
    """Why a paused run is in trouble, and which keys lead on; two empty texts when it is not."""
    if run.state != PAUSED or run.reason in ("", ASKED):
        return "", ""
    if held(run, told) is not None:
        step = f"step {run.step + 1:,}"
        return (
            f"‖ {step} is held back: {run.reason}; its update has not been applied",
            "b shows its rows: skip them, roll back, or go on · p goes on · x stops",
        )
    if run.reason.startswith(PASSING):
        return (
            f"‖ paused: {run.reason}",
            "goes on by itself when that is over · p goes on now · x stops with a checkpoint",
        )
    return f"‖ paused: {run.reason}", "p goes on · x stops with a checkpoint"


def standing(run: Run, told: RunTold) -> list[Entry]:
    """The warnings that still mean something: that a batch is held back is over when it has been decided on."""
    if held(run, told) is not None:
        return list(told.warnings)
    return [entry for entry in told.warnings if not (entry.get("step") is not None and _HELD in entry["message"])]


# ── thresholds ────────────────────────────────────────────────────────────────────────────────────────────────────


def thresholds(told: RunTold) -> tuple[Threshold, ...]:
    """What the results must reach."""
    listed: Sequence[Any] = (told.start or {}).get("facts", {}).get("thresholds", ())
    return tuple((name, comparison, float(bound)) for name, comparison, bound in listed if comparison in _COMPARISONS)


def holds(threshold: Threshold, value: float | None) -> bool:
    """A value that is not there or not finite holds nothing."""
    _, comparison, bound = threshold
    return value is not None and _COMPARISONS[comparison](value, bound)


# ── replies ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answered:
    """A reply that a probe gave at `step`, and at all evaluations up to `last`."""

    step: int
    last: int
    reply: str


def probes(told: RunTold) -> dict[str, list[Answered]]:
    """Prompt -> its replies, oldest first; one that stayed the same is there once. A later attempt's reply replaces an earlier one's."""
    found: dict[str, dict[int, str]] = {}
    for entry in told.probes:
        found.setdefault(entry["prompt"], {})[entry["step"]] = entry["reply"]
    replies: dict[str, list[Answered]] = {}
    for prompt, by_step in found.items():
        changes: list[Answered] = []
        for step, reply in sorted(by_step.items()):
            if changes and changes[-1].reply == reply:
                changes[-1] = Answered(changes[-1].step, step, reply)
            else:
                changes.append(Answered(step, step, reply))
        replies[prompt] = changes
    return replies


def samples(told: RunTold) -> dict[int, list[Entry]]:
    """Step -> the replies kept of its evaluation, the newest step first."""
    found: dict[int, dict[str, Entry]] = {}
    for entry in told.samples:
        found.setdefault(entry["step"], {})[entry["prompt"]] = entry
    return {step: list(found[step].values()) for step in sorted(found, reverse=True)}


def scores(entry: Mapping[str, Any]) -> str:
    """A sample's scores in a line."""
    known = {name: value for name, value in entry.get("scores", {}).items() if math.isfinite(value)}
    return "  ".join(f"{name} {number(value)}" for name, value in known.items())
