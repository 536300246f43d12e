"""The forecast at the launch of a run: made in a process of its own once its rows are prepared, before it trains."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile
from engine.hardware import host_memory
from engine.hardware.listing import list_visible
from engine.options.tables import AUTO
from engine.protocol.home import Home, RunDirectory, write_private
from engine.protocol.messages import ProblemError
from engine.workers.run_journal import RunJournal

SECONDS = 60
"""A forecast that takes longer is done without."""
REFUSALS = ("memory.will_not_fit", "disk.low")
"""Codes of problems of a run that cannot fit for certain."""


def forecast_run(run: RunDirectory, home: Home, profile: Profile, journal: RunJournal) -> None:
    """Forecast the run where it has accelerators, and where `launch.strategy: auto` has to be replaced. A run for which
    there is no forecast, for whatever reason, goes on without. Raises ProblemError for one that cannot fit for
    certain."""
    try:
        _forecast_run(run, home, profile, journal)
    except Exception as error:
        if isinstance(error, ProblemError) and error.problem.code in REFUSALS:
            raise
        print(f"there is no forecast: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _forecast_run(run: RunDirectory, home: Home, profile: Profile, journal: RunJournal) -> None:
    cards = list_visible()
    processes = profile.launch.processes
    alone = (processes if isinstance(processes, int) else max(1, len(cards))) == 1
    elsewhere = profile.launch.via != "local"  # on cards that are not known here
    unknown = profile.launch.strategy == AUTO and (elsewhere or not alone)
    if not unknown and (elsewhere or not cards):
        return
    if not elsewhere:
        journal.progress("forecasting", 0, 0)
    found = None if elsewhere else _ask(run, home)
    if found is None:
        if unknown:
            journal.warn(
                "launch.strategy auto: there is no forecast of this run, so ddp is used",
                "name a strategy if that does not fit",
                code="forecast.strategy",
            )
            _write_strategy(run, profile, "ddp")
        return
    card, host, free = forecasts.find_largest(cards), host_memory.read_total(), found["free_bytes"]
    if forecasts.is_hopeless(found, card, host):
        raise ProblemError(forecasts.explain_refusal(found, card, host))
    disk = forecasts.read_free_disk(home)
    if disk is not None and forecasts.judge_disk(found, disk) == "too_large":
        raise ProblemError(forecasts.explain_full_disk(found, disk, home.runs))
    if near := forecasts.describe_near(found, card, free, disk):
        journal.warn(near, forecasts.NEAR_HINT, code="memory.near")
    if unknown:
        _choose_strategy(run, profile, found, journal)


def _ask(run: RunDirectory, home: Home) -> dict[str, Any] | None:
    """The forecast with its `chosen_strategy`; None where there is none. Its output goes to the run's log."""
    command = [sys.executable, "-P", "-m", "engine.workers.forecast", "launch", json.dumps({"run": run.id})]
    command += ["--home", str(home.root), "--job", run.id, "--json"]  # with which the supervisor finds it to end it
    try:
        lines = subprocess.run(command, stdout=subprocess.PIPE, timeout=SECONDS, check=False).stdout
    except OSError:
        return None
    except subprocess.TimeoutExpired as late:
        lines = late.stdout or b""  # the verdict may be there, and only the search for changes is late
    for line in reversed(lines.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "device_bytes" in found:
            return found
    return None


def _choose_strategy(run: RunDirectory, profile: Profile, found: dict[str, Any], journal: RunJournal) -> None:
    """Put the strategy into the run's profile."""
    chosen = found["chosen_strategy"]
    _write_strategy(run, profile, chosen)
    journal.warn(
        f"launch.strategy auto: {chosen} ({forecasts.summarize(found)})", "nothing to do", code="forecast.strategy"
    )


def _write_strategy(run: RunDirectory, profile: Profile, chosen: str) -> None:
    changed = replace(profile, launch=profile.launch.model_copy(update={"strategy": chosen}))
    write_private(run.profile, changed.to_yaml().encode())
