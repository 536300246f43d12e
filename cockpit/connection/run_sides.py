"""Reads what a comparison says about a run from its directory. This needs no engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.run_comparison import Side, flatten
from engine.protocol import journal, states
from engine.protocol.home import RunDirectory, host_name

BATCH_FILE = Path("trainer") / "fingerprint.json"
"""Where a checkpoint has the digest of its next batch."""


def read_side(run: RunDirectory, now: float) -> Side:
    """What the run's files say. A file that is absent or damaged leaves its part out; `noted` says which."""
    noted = []
    settings = _read_profile(run.profile)
    if settings is None:
        noted.append(tr("its profile cannot be read"))
    values: dict[str, float] = {}
    steps = attempts = 0
    heard: dict[int, float] = {}
    for entry, _ in journal.read(run.events):
        if isinstance(entry, (journal.Metrics, journal.Evaluation)):
            values |= {name: value for name, value in entry.values.items() if value is not None}
        if isinstance(entry, journal.Metrics):
            steps = entry.step
        attempts = max(attempts, entry.attempt)
        heard[entry.attempt] = entry.time
    running = _read_lifecycle(run, now, heard)
    return Side(
        run=run.id,
        state=running.state,
        settings=settings or {},
        files=_read_files(run),
        batches=_read_batches(run),
        values=values,
        steps=steps,
        attempts=attempts,
        seconds=sum(stop - start for start, stop in running.spans),
        spans=running.spans,
        span_devices=[running.devices.get(attempt, ()) for attempt in running.attempts],
        devices=running.newest,
        sampled=not running.through and _read_json(run.path / "job.json").get("host") in (None, "", host_name()),
        through=running.through,
        noted=", ".join(noted),
    )


def _read_profile(path: Path) -> dict[str, Any] | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from engine.config import yaml_text

    try:
        text = path.read_text(encoding="utf-8")
        yaml_text.check(text)
        found = YAML(typ="safe", pure=True).load(text)
    except (OSError, ValueError, YAMLError, RecursionError):
        return None
    return flatten(found) if isinstance(found, dict) else None


@dataclass
class _Running:
    """When a run was running, and on what."""

    state: str = states.QUEUED
    """The newest state."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    """The attempt of each span."""
    devices: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Attempt -> its devices."""
    newest: tuple[int, ...] = ()
    through: str = ""

    def end(self, since: float, until: float, attempt: int) -> None:
        self.spans.append((since, max(since, until)))
        self.attempts.append(attempt)


def _read_lifecycle(run: RunDirectory, now: float, heard: dict[int, float]) -> _Running:
    """`heard`: when the worker of each attempt last wrote. A run that was lost has been running until then: it is
    called lost when an engine next looks, which may be days later."""
    found, since = _Running(), 0.0
    for entry, _ in journal.read(run.lifecycle):
        if isinstance(entry, journal.Launched):
            found.newest = tuple(entry.devices)
            found.devices[entry.attempt] = found.newest or found.devices.get(entry.attempt, ())
            found.through = "Slurm" if entry.slurm or entry.slurm_name else ""
        if not isinstance(entry, journal.State):
            continue
        if found.state == states.RUNNING and entry.state != states.RUNNING:
            lost = entry.state == states.LOST
            found.end(since, min(entry.time, heard.get(entry.attempt, since)) if lost else entry.time, entry.attempt)
        if entry.state == states.RUNNING and found.state != states.RUNNING:
            since = entry.time
        found.state = entry.state
    if found.state == states.RUNNING:
        found.end(since, now, max(found.devices, default=1))
    return found


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
