"""Reads runs from their directories. This needs no engine, and works on another host's runs too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from cockpit.language.translate import tr
from engine.protocol import journal, states
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem, ProblemError


def find_run(home: Home, reference: str) -> RunDirectory:
    """Find a run by id, unambiguous prefix, or `last`, as the engine does. Raises ProblemError."""
    created = {run.id: moment for run, moment in _runs(home)}
    if not created:
        raise ProblemError(
            Problem(
                code="run.none", title=tr("There are no runs yet"), hint=tr("cockpit demo, or cockpit train PROFILE")
            )
        )
    if reference == "last":
        return home.run(max(created, key=created.__getitem__))
    matches = [reference] if reference in created else sorted(run for run in created if run.startswith(reference))
    if len(matches) == 1:
        return home.run(matches[0])
    cause = (
        tr("it could mean {matches}", matches=", ".join(matches[:5])) if matches else tr("no run's id starts with it")
    )
    raise ProblemError(
        Problem(
            code="run.ambiguous" if matches else "run.not_found",
            title=tr("Which run is {reference}?", reference=reference),
            cause=cause,
            hint=tr("cockpit runs"),
        )
    )


def _runs(home: Home) -> Iterator[tuple[RunDirectory, float]]:
    """Every run directory with the moment it was submitted, seconds since the epoch."""
    for job in home.runs.glob("[!.]*/job.json"):
        try:
            yield RunDirectory(job.parent), float(msgspec.json.decode(job.read_bytes())["created"])
        except (OSError, msgspec.MsgspecError, KeyError):
            continue  # being created or deleted


def read_state(run: RunDirectory) -> str:
    """The newest state in the lifecycle journal; `queued` before the first entry."""
    state = states.QUEUED
    for entry, _ in journal.read(run.lifecycle):
        if isinstance(entry, journal.State):
            state = entry.state
    return state


def read_metrics(run: RunDirectory, names: list[str]) -> Iterator[dict[str, Any]]:
    """All metric values in the journal's order, as `step name value time attempt`; only those of `names`, unless that
    is empty."""
    for entry, _ in journal.read(run.events):
        if isinstance(entry, (journal.Metrics, journal.Evaluation)):
            for name, value in entry.values.items():
                if not names or name in names:
                    yield {
                        "step": entry.step,
                        "name": name,
                        "value": value,
                        "time": entry.time,
                        "attempt": entry.attempt,
                    }


def latest_values(values: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """One value for each step and name, that of the latest attempt, by ascending step."""
    latest = {(point["step"], point["name"]): point for point in values}
    return sorted(latest.values(), key=lambda point: point["step"])
