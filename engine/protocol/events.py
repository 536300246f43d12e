"""Events that the supervisor publishes to every attached client."""

from __future__ import annotations

from typing import Any

from engine.protocol.description import Rank, Run, Service, Telemetry
from engine.protocol.envelope import Message


class RunChanged(Message, tag="run", kw_only=True):
    """The new summary of a run. Progress is published at most five times a second."""

    run: Run


class RunRemoved(Message, tag="removed", kw_only=True):
    """A run was deleted."""

    run: str


class Points(Message, tag="points", kw_only=True):
    """New metric values of a run, coalesced. `values[name]` is a list of `[step, value]` by ascending step."""

    run: str
    attempt: int
    values: dict[str, list[tuple[int, float]]]


class Told(Message, tag="told", kw_only=True):
    """A new journal entry other than metrics, as the journal's JSON object (see journals.md)."""

    run: str
    entry: dict[str, Any]


class Ranks(Message, tag="ranks", kw_only=True):
    """The ranks of a run at their last heartbeats, published once a second."""

    run: str
    ranks: list[Rank]


class ServiceChanged(Message, tag="service", kw_only=True):
    """The new state of a service."""

    service: Service


class ServiceEvent(Message, tag="service_event", kw_only=True):
    """An event of a service while it answers `request`, such as tokens or progress. Never coalesced, and never dropped
    by the supervisor."""

    service: str
    request: str
    kind: str
    data: dict[str, Any] = {}


class Closing(Message, tag="closing", kw_only=True):
    """The supervisor is about to end."""


Body = RunChanged | RunRemoved | Points | Told | Ranks | Telemetry | ServiceChanged | ServiceEvent | Closing
