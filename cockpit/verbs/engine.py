"""`cockpit engine`: verbs on the background engine."""

from __future__ import annotations

import argparse
import os
import signal
import time

from cockpit import remote_names
from cockpit.language.translate import tr
from cockpit.state.formatting import counted, format_duration, format_size
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
        tr(
            "engine {pid} on {host}, up {uptime}, protocol {protocol}, {home}",
            pid=engine.pid,
            host=engine.host,
            uptime=format_duration(uptime),
            protocol=engine.protocol,
            home=engine.home,
        )
    )
    for note in engine.notes:
        say(f"  {note}", "yellow")
    if engine.warm is not None:
        print(f"  {_describe_warm(engine.warm)}")
    for job in engine.jobs:
        print(tr("  run      {job}", job=job))
    for service in engine.services:
        print(
            tr(
                "  service  {id} ({state}{target})",
                id=service.id,
                state=service.state,
                target=f", {service.target}" if service.target else "",
            )
        )
    return 0


def _describe_warm(worker: WarmWorker) -> str:
    if worker.state == "none":
        return tr("no worker is kept ahead: {reason}", reason=worker.reason)
    memory = format_size(worker.memory)
    if worker.state == "ready":
        return tr(
            "ahead    process {pid} has imported the libraries, {memory}; the next job begins in it",
            pid=worker.pid,
            memory=memory,
        )
    return tr(
        "ahead    process {pid} is importing the libraries, {memory}; the next job begins in it",
        pid=worker.pid,
        memory=memory,
    )


def stop(options: argparse.Namespace) -> int:
    """Succeeds, too, when no engine is running."""
    home = Home.locate(options.home)
    connection = find_engine(home)
    if connection is not None:
        _end(home, connection, options.force)
    if options.json:
        emit({"pid": connection.pid if connection else None, "stopped": connection is not None})
    else:
        say(tr("The engine has stopped.") if connection else tr("No engine is running for {root}.", root=home.root))
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
                    title=tr("The engine is still shutting down"),
                    cause=tr(
                        "process {pid} is still running after {SHUTDOWN_TIMEOUT:g} s",
                        pid=connection.pid,
                        SHUTDOWN_TIMEOUT=SHUTDOWN_TIMEOUT,
                    ),
                    hint=tr("its log is {engine_log}", engine_log=home.engine_log),
                )
            )
        time.sleep(0.02)


def _signal(connection: Connection, problem: Problem, force: bool) -> None:
    """End an engine that cannot be asked: by SIGTERM, with `force` at last by SIGKILL. Its jobs go on."""
    if not is_running(connection):
        return
    start = tr("{command} engine start", command=remote_names.command)
    say(
        tr(
            "{problem}\nIt is ended by a signal. Jobs go on; `{start}` adopts them, and they can be stopped.",
            problem=problem,
            start=start,
        )
    )
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
        say(tr("Indexed {runs} again.", runs=counted(len(found.runs), "run")))
    return 0
