"""Reads what a comparison says about a run from its directory. This needs no engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cockpit.state.run_comparison import Side, flatten
from engine.protocol import journal, states
from engine.protocol.home import RunDirectory

BATCH_FILE = Path("trainer") / "fingerprint.json"
"""Where a checkpoint has the digest of its next batch."""


def read_side(run: RunDirectory, now: float) -> Side:
    """What the run's files say. A file that is absent or damaged leaves its part out; `noted` says which."""
    noted = []
    settings = _read_profile(run.profile)
    if settings is None:
        noted.append("its profile cannot be read")
    state, spans = _read_lifecycle(run, now)
    values: dict[str, float] = {}
    steps = attempts = 0
    devices: tuple[int, ...] = ()
    for entry, _ in journal.read(run.events):
        if isinstance(entry, (journal.Metrics, journal.Evaluation)):
            values |= {name: value for name, value in entry.values.items() if value is not None}
        if isinstance(entry, journal.Metrics):
            steps = entry.step
        attempts = max(attempts, entry.attempt)
    for entry, _ in journal.read(run.lifecycle):
        listed = getattr(entry, "devices", None)
        if isinstance(listed, list):
            devices = tuple(each for each in listed if isinstance(each, int))
    return Side(
        run=run.id,
        state=state,
        settings=settings or {},
        files=_read_files(run),
        batches=_read_batches(run),
        values=values,
        steps=steps,
        attempts=attempts,
        seconds=sum(stop - start for start, stop in spans),
        spans=spans,
        devices=devices,
        noted=", ".join(noted),
    )


def _read_profile(path: Path) -> dict[str, Any] | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError, RecursionError):
        return None
    return flatten(found) if isinstance(found, dict) else None


def _read_lifecycle(run: RunDirectory, now: float) -> tuple[str, list[tuple[float, float]]]:
    """The newest state, and when the run was running."""
    state, since = states.QUEUED, 0.0
    spans: list[tuple[float, float]] = []
    for entry, _ in journal.read(run.lifecycle):
        if not isinstance(entry, journal.State):
            continue
        if state == states.RUNNING and entry.state != states.RUNNING:
            spans.append((since, max(since, entry.time)))
        if entry.state == states.RUNNING and state != states.RUNNING:
            since = entry.time
        state = entry.state
    if state == states.RUNNING:
        spans.append((since, max(since, now)))
    return state, spans


def _read_files(run: RunDirectory) -> list[tuple[str, str, str]]:
    listed = _read_json(run.prepared).get("files")
    return [
        (str(each.get("part", "")), str(each.get("name", "")), str(each.get("sha256", "")))
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, dict)
    ]


def _read_batches(run: RunDirectory) -> dict[int, str]:
    found = {}
    for step in run.checkpoint_steps():
        digest = _read_json(run.checkpoint(step) / BATCH_FILE).get("next batch")
        if isinstance(digest, str):
            found[step] = digest
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
