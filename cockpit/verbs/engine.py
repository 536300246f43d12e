"""`cockpit engine`: verbs on the background engine."""

from __future__ import annotations

import argparse
import os
import signal
import time

from cockpit import remote_names
from cockpit.state.formatting import format_duration, format_size
from cockpit.verbs.output import emit, say, say_warning
from engine.protocol.client import LOST, Client, find_engine
from engine.protocol.home import Home
from engine.protocol.messages import PROTOCOL, Problem, ProblemError, RunList, Shutdown, WarmWorker, Welcome
from engine.protocol.wire import Connection, is_running

SIGNAL_TIMEOUT = 5.0
"""Seconds that an engine which cannot be asked has to end in order, before `--force` kills it."""
SHUTDOWN_TIMEOUT = 30.0
"""Seconds that an engine may take to end its jobs and itself."""


def status(options: argparse.Namespace) -> int:
    with Client(Home.locate(options.home), start=False) as client:
        return _print_status(client.request("hello"), options.json)


def start(options: argparse.Namespace) -> int:
    with Client(Home.locate(options.home)) as client:
        say_warning(client)
        return _print_status(client.request("hello"), options.json)


def _print_status(engine: Welcome, as_json: bool) -> int:
    uptime = time.time() - engine.started
    if as_json:
        emit(
            {
                "pid": engine.pid,
                "protocol": engine.protocol,
                "home": engine.home,
                "uptime": uptime,
                "jobs": engine.jobs,
                "services": engine.services,
                "ignored": engine.ignored,
                "notes": engine.notes,
                "warm": engine.warm,
            }
        )
        return 0
    print(
        f"engine {engine.pid} on {engine.host}, up {format_duration(uptime)}, protocol {engine.protocol}, {engine.home}"
    )
    for note in engine.notes:
        say(f"  {note}", "yellow")
    if engine.warm is not None:
        print(f"  {_describe_warm(engine.warm)}")
    for job in engine.jobs:
        print(f"  run      {job}")
    for service in engine.services:
        print(f"  service  {service.id} ({service.state}{f', {service.target}' if service.target else ''})")
    return 0


def _describe_warm(worker: WarmWorker) -> str:
    if worker.state == "none":
        return f"no worker is kept ahead: {worker.reason}"
    state = "has imported the libraries" if worker.state == "ready" else "is importing the libraries"
    return f"ahead    process {worker.pid} {state}, {format_size(worker.memory)}; the next job begins in it"


def stop(options: argparse.Namespace) -> int:
    """Succeeds, too, when no engine is running."""
    home = Home.locate(options.home)
    connection = find_engine(home)
    if connection is not None:
        _end(home, connection, options.force)
    if options.json:
        emit({"pid": connection.pid if connection else None, "stopped": connection is not None})
    else:
        say("The engine has stopped." if connection else f"No engine is running for {home.root}.")
    return 0


def _end(home: Home, connection: Connection, force: bool) -> None:
    if connection.protocol == PROTOCOL:
        try:
            with Client(home, start=False) as client:
                client.request("shutdown", Shutdown(force=force))
        except ProblemError as error:
            if error.problem.code not in LOST:
                raise
            _signal(connection, error.problem, force)
    else:
        # It would not understand the request. SIGTERM ends any version; its jobs go on until an engine adopts them.
        os.kill(connection.pid, signal.SIGTERM)
    deadline = time.monotonic() + SHUTDOWN_TIMEOUT
    while is_running(connection):
        if time.monotonic() > deadline:
            raise ProblemError(
                Problem(
                    code="engine.still_ending",
                    title="The engine is still shutting down",
                    cause=f"process {connection.pid} is still running after {SHUTDOWN_TIMEOUT:g} s",
                    hint=f"its log is {home.engine_log}",
                )
            )
        time.sleep(0.02)


def _signal(connection: Connection, problem: Problem, force: bool) -> None:
    """End an engine that cannot be asked: by SIGTERM, with `force` at last by SIGKILL. Its jobs go on."""
    if not is_running(connection):
        return
    start = f"{remote_names.command} engine start"
    say(f"{problem}\nIt is ended by a signal. Jobs go on; `{start}` adopts them, and they can be stopped.")
    os.kill(connection.pid, signal.SIGTERM)
    if not force:
        return
    deadline = time.monotonic() + SIGNAL_TIMEOUT
    while is_running(connection):
        if time.monotonic() > deadline:
            os.kill(connection.pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def connect(options: argparse.Namespace) -> int:
    """The far end of `cockpit --on`: ssh starts it, see `connection.agent`."""
    from cockpit.connection.agent import serve

    serve(Home.locate(options.home))
    return 0


def reindex(options: argparse.Namespace) -> int:
    with Client(Home.locate(options.home)) as client:
        found: RunList = client.request("reindex", timeout=600.0)
    if options.json:
        emit({"runs": len(found.runs)})
    else:
        say(f"{len(found.runs)} runs are indexed again.")
    return 0
