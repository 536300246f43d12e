"""What the app knows, and how what the engine says changes it. Pure: state and body in, state out; nothing here draws.

Memory is bounded: figures of the last ten minutes, the newest entries of each kind for each run. Curves are not
here; a chart asks for its series and appends the `Points` that follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.protocol import states
from engine.protocol.messages import (
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

HISTORY = 600
"""Samples of telemetry kept, one a second."""
KEPT = 200
"""Journal entries of one kind kept for one run."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class RunTold:
    """What a run's journal said beside its metrics, oldest first, as JSON objects."""

    checkpoints: tuple[Entry, ...] = ()
    evaluations: tuple[Entry, ...] = ()
    samples: tuple[Entry, ...] = ()
    probes: tuple[Entry, ...] = ()
    """Samples that the profile itself asks for, at every evaluation."""
    ledger: tuple[Entry, ...] = ()
    warnings: tuple[Entry, ...] = ()
    start: Entry | None = None
    phase: Entry | None = None
    bad_batch: Entry | None = None
    """The newest batch that was held back."""


_LISTS = {
    "checkpoint": "checkpoints",
    "evaluation": "evaluations",
    "sample": "samples",
    "ledger": "ledger",
    "warning": "warnings",
}
"""Journal kind -> field of `RunTold`."""


@dataclass(frozen=True)
class State:
    connection: str = "connecting"
    """connecting · attached · lost"""
    problem: Problem | None = None
    """Why the connection is lost, when that is known."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    selected: str | None = None
    """The run that the dashboard shows."""
    wanted: str | None = None
    """A run that was asked for before the engine told of it; selected as soon as it does."""
    services: Mapping[str, Service] = field(default_factory=dict)
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Server -> its tokens a second whenever it told them, newest last."""
    telemetry: Telemetry | None = None
    device_history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Name -> values a second apart, newest last: `host/cpu_percent`, `host/memory_percent`, `device/0/utilisation`,
    `device/0/memory_percent`."""
    told: Mapping[str, RunTold] = field(default_factory=dict)
    ranks: Mapping[str, tuple[Rank, ...]] = field(default_factory=dict)

    @property
    def run(self) -> Run | None:
        """The selected run."""
        return self.runs.get(self.selected or "")

    def listed(self) -> list[Run]:
        """All runs, newest first."""
        return sorted(self.runs.values(), key=lambda run: run.created, reverse=True)


def reduce(state: State, body: object) -> State:
    """The state after `body`: a Snapshot, a published body, or a reply of `show` or `telemetry`. Others change nothing."""
    match body:
        case Snapshot():
            runs = {run.id: run for run in body.runs}
            state = replace(
                state,
                connection="attached",
                problem=None,
                runs=runs,
                services={service.id: service for service in body.services},
                told={run: told for run, told in state.told.items() if run in runs},
                ranks={},
            )
            state = _settle(state)
            return _sampled(state, body.telemetry) if body.telemetry else state
        case RunChanged():
            state = replace(state, runs={**state.runs, body.run.id: body.run})
            return _settle(state)
        case RunRemoved():
            gone = body.run
            state = replace(
                state,
                runs=_without(state.runs, gone),
                told=_without(state.told, gone),
                ranks=_without(state.ranks, gone),
            )
            return _settle(state)
        case Told():
            return _with_told(state, body.run, take(state.told.get(body.run, RunTold()), body.entry))
        case RunDetail():
            told = RunTold()
            for entry in body.told:
                told = take(told, entry)
            state = replace(state, ranks={**state.ranks, body.run.id: tuple(body.ranks)})
            return _with_told(state, body.run.id, told)
        case Ranks():
            return replace(state, ranks={**state.ranks, body.run: tuple(body.ranks)})
        case Telemetry():
            return _sampled(state, body)
        case TelemetryHistory():
            state = replace(state, device_history={})
            for sample in body.samples[-HISTORY:]:
                state = _sampled(state, sample)
            return state
        case ServiceChanged(service=service):
            state = replace(state, services={**state.services, service.id: service})
            return _rated(state, service)
    return state


def select(state: State, run: str) -> State:
    """The state with `run` on the dashboard, now or as soon as the engine tells of it."""
    return _settle(replace(state, wanted=run))


def _settle(state: State) -> State:
    """Take the run that is wanted; without one keep the selected; when that is gone, the newest live one, else the newest."""
    if state.wanted in state.runs:
        return replace(state, selected=state.wanted, wanted=None)
    if state.selected in state.runs:
        return state
    listed = state.listed()
    live = [candidate for candidate in listed if candidate.state in states.LIVE]
    chosen = next(iter(live or listed), None)
    return replace(state, selected=chosen.id if chosen else None)


def neighbour(state: State, direction: int) -> str | None:
    """The id of the run after (+1: older) or before (-1: newer) the selected one; stays at the ends."""
    ids = [run.id for run in state.listed()]
    if state.selected not in ids:
        return None
    return ids[max(0, min(len(ids) - 1, ids.index(state.selected) + direction))]


def take(told: RunTold, entry: Entry) -> RunTold:
    """One more journal entry."""
    kind = entry.get("kind", "")
    changed: dict[str, Any] = {}
    if kind in _LISTS:
        name = "probes" if entry.get("probe") else _LISTS[kind]
        changed[name] = (*getattr(told, name), entry)[-KEPT:]
    elif kind in ("start", "phase", "bad_batch"):
        changed[kind] = entry
    return replace(told, **changed)


def _rated(state: State, service: Service) -> State:
    """With what a server has just told of its pace; without a server that has ended."""
    if service.state == "ended":
        return replace(state, rates=_without(state.rates, service.id))
    rate = service.figures.get("tokens_per_second")
    if rate is None:
        return state
    return replace(state, rates={**state.rates, service.id: (*state.rates.get(service.id, ()), rate)[-HISTORY:]})


def _with_told(state: State, run: str, told: RunTold) -> State:
    return replace(state, told={**state.told, run: told})


def _sampled(state: State, sample: Telemetry) -> State:
    history = {name: (*state.device_history.get(name, ()), value)[-HISTORY:] for name, value in figures(sample).items()}
    return replace(state, telemetry=sample, device_history=history)


def figures(sample: Telemetry) -> dict[str, float]:
    """What of a sample is drawn over time, all in percent. A figure that a device does not tell is absent."""
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
