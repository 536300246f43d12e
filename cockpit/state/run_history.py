"""What happened to a run, read from its journal entries: changes, pauses, thresholds, replies. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cockpit.language.translate import tr, tr_engine
from cockpit.state.app_state import Entry, RunHistory
from cockpit.state.formatting import counted, format_number
from engine.protocol.codes import PASSING
from engine.protocol.messages import Run
from engine.protocol.states import PAUSED

MARK_NAMES = {
    "training.learning_rate": "lr",
    "training.max_grad_norm": "clip",
    "training.max_steps": "end",
    "evaluation.every_steps": "eval",
    "checkpoint.every_steps": "save",
    "training.micro_batch": "batch",
    "training.tokens_per_batch": "batch",
    "training.accumulation": "batch",
    "training.epochs": "end",
    "pause": "pause",
    "skip": "skip",
    "rollback": "back",
    "early stopping": "early",
}
"""Ledger entry -> its name on the chart. Other entries are listed, but not marked."""

Threshold = tuple[str, str, float]
"""Metric, comparison, bound."""
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


# ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def chart_marks(history: RunHistory) -> tuple[tuple[int, str], ...]:
    """Step and short name of each change during the run, by ascending step, without duplicates."""
    found = {(entry["step"], MARK_NAMES[entry["name"]]) for entry in history.ledger if entry["name"] in MARK_NAMES}
    return tuple(sorted(found))


def current_settings(run: Run, history: RunHistory) -> dict[str, Any]:
    """The current values of the settings that may change; settings whose value is not known are absent."""
    start = history.start or {}
    values: dict[str, Any] = dict(start.get("facts", {}).get("settings", {}))
    since = start.get("time", 0.0)
    values |= {entry["name"]: entry.get("new") for entry in history.ledger if entry.get("time", 0.0) >= since}
    if run.max_steps:
        values["training.max_steps"] = run.max_steps
    return values


def format_value(value: Any) -> str:
    """A setting's value as short text."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return counted(len(value), "row")
    return str(value)


# ── pauses ────────────────────────────────────────────────────────────────────────────────────────────────────────


def held_batch(run: Run, history: RunHistory) -> Entry | None:
    """The bad batch that a paused run is waiting for a decision about; None when there is none."""
    batch = history.bad_batch
    if run.state != PAUSED or batch is None or not history.ledger:
        return None
    pause = next((entry for entry in reversed(history.ledger) if entry["name"] in ("pause", "continue")), None)
    if pause is None or pause["name"] != "pause":
        return None
    # Older journals have no codes: there the step alone tells.
    return batch if (pause["step"], pause.get("code")) == (batch["step"], batch.get("code")) else None


def rollback_step(history: RunHistory, step: int) -> int | None:
    """The step of the newest checkpoint before `step` that still exists, which a roll-back returns to."""
    there: set[int] = set()
    for entry in history.checkpoints:
        there -= set(entry.get("removed", ()))
        there.add(entry["step"])
    return max((each for each in there if each < step), default=None)


def sort_rows(batch: Entry) -> list[dict[str, Any]]:
    """The rows of a bad batch: first those without a finite loss, then by descending loss."""
    return sorted(batch["rows"], key=lambda row: (row.get("loss") is not None, -(row.get("loss") or 0.0), row["row"]))


def pause_advice(run: Run, history: RunHistory) -> tuple[str, str]:
    """Why a run was paused, and which keys to press; two empty texts when it is not paused, or when the user paused
    it."""
    if run.state != PAUSED or not run.reason or run.code == "pause.asked":
        return "", ""
    if held_batch(run, history) is not None:
        step = tr("step {step:,}", step=run.step + 1)
        return (
            tr(
                "‖ {step} is held back: {tr_engine}; its update has not been applied",
                step=step,
                tr_engine=tr_engine(run.reason),
            ),
            tr("b shows its rows: skip them, roll back, or continue · p continues · x stops"),
        )
    if run.code in PASSING:
        return (
            tr("‖ paused: {tr_engine}", tr_engine=tr_engine(run.reason)),
            tr("continues automatically when that is over · p continues now · x stops with a checkpoint"),
        )
    return tr("‖ paused: {tr_engine}", tr_engine=tr_engine(run.reason)), tr("p continues · x stops with a checkpoint")


def active_warnings(run: Run, history: RunHistory) -> list[Entry]:
    """The warnings that still apply. A warning about a batch that is held back ends with the decision about it."""
    if held_batch(run, history) is not None:
        return list(history.warnings)
    return [entry for entry in history.warnings if entry.get("code") != "training.batch_held"]


# ── thresholds ────────────────────────────────────────────────────────────────────────────────────────────────────


def thresholds(history: RunHistory) -> tuple[Threshold, ...]:
    """The thresholds that the results must reach."""
    listed: Sequence[Any] = (history.start or {}).get("facts", {}).get("thresholds", ())
    return tuple((name, comparison, float(bound)) for name, comparison, bound in listed if comparison in _COMPARISONS)


def meets_threshold(threshold: Threshold, value: float | None) -> bool:
    """False for a value that is missing or not finite."""
    _, comparison, bound = threshold
    return value is not None and _COMPARISONS[comparison](value, bound)


# ── replies ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ProbeReply:
    """A probe's reply, the same at all evaluations from `step` to `last`."""

    step: int
    last: int
    reply: str


def replies_by_probe(history: RunHistory) -> dict[str, list[ProbeReply]]:
    """Prompt -> its replies, oldest first; consecutive equal replies are merged. A later attempt's reply replaces an
    earlier one's."""
    found: dict[str, dict[int, str]] = {}
    for entry in history.probes:
        found.setdefault(entry["prompt"], {})[entry["step"]] = entry["reply"]
    replies: dict[str, list[ProbeReply]] = {}
    for prompt, by_step in found.items():
        changes: list[ProbeReply] = []
        for step, reply in sorted(by_step.items()):
            if changes and changes[-1].reply == reply:
                changes[-1] = ProbeReply(changes[-1].step, step, reply)
            else:
                changes.append(ProbeReply(step, step, reply))
        replies[prompt] = changes
    return replies


def samples_by_step(history: RunHistory) -> dict[int, list[Entry]]:
    """Step -> the sampled replies of its evaluation, the newest step first."""
    found: dict[int, dict[str, Entry]] = {}
    for entry in history.samples:
        found.setdefault(entry["step"], {})[entry["prompt"]] = entry
    return {step: list(found[step].values()) for step in sorted(found, reverse=True)}


def format_scores(entry: Mapping[str, Any]) -> str:
    """A sample's scores as one line."""
    known = {name: value for name, value in entry.get("scores", {}).items() if math.isfinite(value)}
    return "  ".join(f"{name} {format_number(value)}" for name, value in known.items())
