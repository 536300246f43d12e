"""A run in the test's own process, where its model and its gradients can be seen."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from engine.config.profile import parse
from engine.protocol.home import Home, RunDirectory
from engine.protocol.journal import AnyEntry, Metrics, read
from tests.training.harness import PROFILE


def train(home: Home, name: str, prepared: dict[str, Any], *changes: str, from_step: int | None = None) -> RunDirectory:
    """One attempt of the run `name`, to its end; a second call with `from_step` is its second attempt."""
    from engine.protocol.worker_link import Link
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.reporter import Reporter

    run = home.run(name)
    run.path.mkdir(parents=True, exist_ok=True)
    run.prepared.write_text(json.dumps(prepared))
    quick = ("training.rehearsal=false", "logging.plots=false", *changes)
    profile = parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), quick, home)
    run.profile.write_text(profile.to_yaml())
    attempt = 1 + len({entry.attempt for entry, _ in read(run.events)}) if run.events.exists() else 1
    link, inbox = Link(f"ipc://{run.path}/nobody", run.id, attempt), Inbox()
    inbox.connect(link)
    with contextlib.closing(link), contextlib.closing(Reporter(run, attempt, link, 0)) as reporter:
        session.train(run, attempt, profile, run.path, from_step, reporter, inbox)
    return run


def entries(run: RunDirectory, kind: type[AnyEntry]) -> list[Any]:
    return [entry for entry, _ in read(run.events) if isinstance(entry, kind)]


def series(run: RunDirectory, name: str) -> dict[int, Any]:
    """A metric by step, a later attempt's value in an earlier one's place."""
    return {entry.step: entry.values[name] for entry in entries(run, Metrics)}
