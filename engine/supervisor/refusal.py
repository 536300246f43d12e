"""Looks for the changes with which a run that is refused would fit, in a process that can trace a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.config import forecasts
from engine.config.profile import ProfileError, parse
from engine.protocol.environment import build_job_environment
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, Run, Submit
from engine.supervisor import room
from engine.supervisor.processes import WORKER_DEFAULTS

if TYPE_CHECKING:
    from engine.supervisor.clients import Caller
    from engine.supervisor.server import Server

SECONDS = 24.0
"""Time that a refusal takes at most: a client waits for 30 s."""
SEARCH = 10
"""Seconds of the search itself: no change is traced after them. The rest is for imports and the last trace."""
_LOOK = 0.2
"""Seconds between two looks at whether the engine is ending."""


def submit(server: Server, caller: Caller, message: Submit) -> Run | None:
    """Queue the run. One that is refused, and whose forecast has no changes yet, gets its answer later (None)."""
    try:
        return server.queue.submit(message)
    except room.Unexplained as refused:
        problem = refused.problem
        server.reply_later(caller, lambda: refuse(problem, message, server.home, lambda: server.closing))
        return None


def refuse(problem: Problem, message: Submit, home: Home, is_closing: Callable[[], bool]) -> NoReturn:
    """Raise the problem of a run that cannot fit, with the three cheapest changes that make it fit, as far as they are
    found in time. They are kept with the forecast, so that the next refusal has them at once."""
    changes = _find_changes(message, home, is_closing)
    if not changes:
        raise ProblemError(problem)
    raise ProblemError(
        Problem(
            code=problem.code,
            title=problem.title,
            cause=problem.cause,
            hint=f"change one of these: {forecasts.describe_changes(changes)}",
        )
    )


def _find_changes(message: Submit, home: Home, is_closing: Callable[[], bool]) -> list[dict[str, Any]]:
    directory = message.directory or "/"
    given: dict[str, Any] = {
        "profile": message.source or "profile",
        "text": message.profile,
        "directory": directory,
        "limit": SEARCH,
    }
    command = [sys.executable, "-P", "-m", "engine.workers.forecast", "changes", json.dumps(given)]
    try:
        launch = parse(message.profile, given["profile"], Path(directory), home=home, forecast=True).launch
        environment = WORKER_DEFAULTS | build_job_environment(message.environment, launch.environment, os.environ)
        worker = subprocess.Popen(
            [*command, "--home", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ProfileError):
        return []
    try:
        found = json.loads(_wait(worker, is_closing) or b"{}")
    except ValueError:
        return []
    return list(found.get("changes") or []) if isinstance(found, dict) else []


def _wait(worker: subprocess.Popen[bytes], is_closing: Callable[[], bool]) -> bytes:
    """The last line that the worker writes; empty if it is ended, being late or because the engine ends."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not is_closing():
        try:
            lines = worker.communicate(timeout=_LOOK)[0].splitlines()
            return lines[-1] if lines else b""
        except subprocess.TimeoutExpired:
            continue
    worker.kill()
    worker.communicate()
    return b""
