"""What the app knows, and how each message of the engine changes it. Pure: a state and a message in, a state out.

Memory is bounded: telemetry of the last ten minutes, and the newest journal entries of each kind for each run. Curves
are not part of it; a chart requests its series and appends the `Points` that follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.protocol import states
from engine.protocol.messages import (
    AttemptEnd,
    Problem,
    Rank,
    Ranks,
    Run,
    RunChanged,
    RunDetail,
    RunRemoved,
    Service,
    ServiceChanged,
    Snapshot,
    Telemetry,
    TelemetryHistory,
    Told,
)

MAX_SAMPLES = 600
"""Samples of telemetry kept, one a second."""
MAX_ENTRIES = 200
"""Journal entries of one kind kept for one run."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class RunHistory:
    """A run's journal entries other than its metrics, oldest first, as JSON objects."""

    checkpoints: tuple[Entry, ...] = ()
    evaluations: tuple[Entry, ...] = ()
    samples: tuple[Entry, ...] = ()
    probes: tuple[Entry, ...] = ()
    """Samples for the prompts that the profile names, at every evaluation."""
    ledger: tuple[Entry, ...] = ()
    warnings: tuple[Entry, ...] = ()
    start: Entry | None = None
    phase: Entry | None = None
    bad_batch: Entry | None = None
    """The newest batch that was held back."""
    memory: Mapping[str, Entry] = field(default_factory=dict)
    """What this attempt takes, by the source of the figure: `forecast`, `rehearsed`, `actual`."""
    attempts: tuple[AttemptEnd, ...] = ()
    """How earlier attempts ended."""


_LISTS = {
    "checkpoint": "checkpoints",
    "evaluation": "evaluations",
    "sample": "samples",
    "ledger": "ledger",
    "warning": "warnings",
}
"""Journal kind -> field of `RunHistory`."""


@dataclass(frozen=True)
class AppState:
    connection: str = "connecting"
    """connecting · attached · lost"""
    problem: Problem | None = None
    """Why the connection is lost, when that is known."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    early: Run | None = None
    """The run that will be selected, as far as the home tells without an engine."""
    new: bool = False
    """Whether the home has no run, as far as it tells without an engine."""
    selected: str | None = None
    """The run that the dashboard shows."""
    requested: str | None = None
    """A run to select as soon as the engine reports it."""
    services: Mapping[str, Service] = field(default_factory=dict)
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Server -> the tokens per second that it reported, newest last."""
    telemetry: Telemetry | None = None
    device_history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Name -> values one second apart, newest last: `host/cpu_percent`, `host/memory_percent`, `device/0/utilisation`,
    `device/0/memory_percent`."""
    histories: Mapping[str, RunHistory] = field(default_factory=dict)
    """Run -> its journal entries."""
    ranks: Mapping[str, tuple[Rank, ...]] = field(default_factory=dict)

    @property
    def run(self) -> Run | None:
        """The selected run."""
        return self.runs.get(self.selected or "")

    @property
    def shown(self) -> Run | None:
        """The selected run; until an engine has answered, `early`."""
        return self.early if self.connection == "connecting" else self.run

    def sorted_runs(self) -> list[Run]:
        """All runs, newest first."""
        return sorted(self.runs.values(), key=lambda run: run.created, reverse=True)


def reduce(state: AppState, body: object) -> AppState:
    """The state after `body`: a Snapshot, a published body, or a reply to `show` or `telemetry`. Other bodies change
    nothing."""
    match body:
        case Snapshot():
            runs = {run.id: run for run in body.runs}
            state = replace(
                state,
                connection="attached",
                problem=None,
                runs=runs,
                services={service.id: service for service in body.services},
                histories={run: history for run, history in state.histories.items() if run in runs},
                ranks={},
            )
            state = _update_selection(state)
            return _with_sample(state, body.telemetry) if body.telemetry else state
        case RunChanged():
            state = _keep_end(state, state.runs.get(body.run.id), body.run)
            state = replace(state, runs={**state.runs, body.run.id: body.run})
            return _update_selection(state)
        case RunRemoved():
            gone = body.run
            state = replace(
                state,
                runs=_without(state.runs, gone),
                histories=_without(state.histories, gone),
                ranks=_without(state.ranks, gone),
            )
            return _update_selection(state)
        case Told():
            return _with_history(state, body.run, add_entry(state.histories.get(body.run, RunHistory()), body.entry))
        case RunDetail():
            history = RunHistory()
            for entry in body.told:
                history = add_entry(history, entry)
            history = replace(history, attempts=tuple(body.attempts))
            state = replace(state, ranks={**state.ranks, body.run.id: tuple(body.ranks)})
            return _with_history(state, body.run.id, history)
        case Ranks():
            return replace(state, ranks={**state.ranks, body.run: tuple(body.ranks)})
        case Telemetry():
            return _with_sample(state, body)
        case TelemetryHistory():
            state = replace(state, device_history={})
            for sample in body.samples[-MAX_SAMPLES:]:
                state = _with_sample(state, sample)
            return state
        case ServiceChanged(service=service):
            state = replace(state, services={**state.services, service.id: service})
            return _with_rate(state, service)
    return state


def select_run(state: AppState, run: str) -> AppState:
    """The state with `run` on the dashboard, now or as soon as the engine reports it."""
    return _update_selection(replace(state, requested=run))


def _update_selection(state: AppState) -> AppState:
    """Select the requested run; without one keep the selected run; when that is gone, select the newest live run, else
    the newest."""
    if state.requested in state.runs:
        return replace(state, selected=state.requested, requested=None)
    if state.selected in state.runs:
        return state
    runs = state.sorted_runs()
    live = [candidate for candidate in runs if candidate.state in states.LIVE]
    chosen = next(iter(live or runs), None)
    return replace(state, selected=chosen.id if chosen else None)


def adjacent_run(state: AppState, direction: int) -> str | None:
    """The id of the run after (+1: older) or before (-1: newer) the selected one; stays at the ends."""
    ids = [run.id for run in state.sorted_runs()]
    if state.selected not in ids:
        return None
    return ids[max(0, min(len(ids) - 1, ids.index(state.selected) + direction))]


def add_entry(history: RunHistory, entry: Entry) -> RunHistory:
    """The history with one more journal entry. Unknown kinds are ignored."""
    kind = entry.get("kind", "")
    changed: dict[str, Any] = {}
    if kind in _LISTS:
        name = "probes" if entry.get("probe") else _LISTS[kind]
        changed[name] = (*getattr(history, name), entry)[-MAX_ENTRIES:]
    elif kind in ("start", "phase", "bad_batch"):
        changed[kind] = entry
    elif kind == "memory":
        same = {source: each for source, each in history.memory.items() if each["attempt"] == entry["attempt"]}
        changed[kind] = {**same, entry["source"]: entry}
    return replace(history, **changed)


def _keep_end(state: AppState, before: Run | None, now: Run) -> AppState:
    """The state that remembers how the attempt ended before which a resumed run had."""
    if before is None or before.state not in states.ENDED or now.attempt <= before.attempt:
        return state
    history = state.histories.get(now.id, RunHistory())
    if any(end.attempt == before.attempt for end in history.attempts):
        return state
    end = AttemptEnd(
        attempt=before.attempt,
        state=before.state,
        step=before.step,
        time=before.ended,
        reason=before.reason,
        code=before.code,
        problem=before.problem,
    )
    return _with_history(state, now.id, replace(history, attempts=(*history.attempts, end)))


def _with_rate(state: AppState, service: Service) -> AppState:
    """The state with the rate that a server has just reported; an ended server's rates are dropped."""
    if service.state == "ended":
        return replace(state, rates=_without(state.rates, service.id))
    rate = service.figures.get("tokens_per_second")
    if rate is None:
        return state
    return replace(state, rates={**state.rates, service.id: (*state.rates.get(service.id, ()), rate)[-MAX_SAMPLES:]})


def _with_history(state: AppState, run: str, history: RunHistory) -> AppState:
    return replace(state, histories={**state.histories, run: history})


def _with_sample(state: AppState, sample: Telemetry) -> AppState:
    values = telemetry_values(sample)
    history = {name: (*state.device_history.get(name, ()), value)[-MAX_SAMPLES:] for name, value in values.items()}
    return replace(state, telemetry=sample, device_history=history)


def telemetry_values(sample: Telemetry) -> dict[str, float]:
    """The values of a sample that are drawn over time, all in percent. A value that a device does not report is
    absent."""
    host = sample.host
    named: dict[str, float | None] = {
        "host/cpu_percent": host.cpu_percent,
        "host/memory_percent": 100 * host.memory_used / host.memory_total if host.memory_total else None,
    }
    for device in sample.devices:
        named[f"device/{device.index}/utilisation"] = device.utilisation
        if device.memory_used is not None and device.memory_total:
            named[f"device/{device.index}/memory_percent"] = 100 * device.memory_used / device.memory_total
    return {name: value for name, value in named.items() if value is not None}


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
