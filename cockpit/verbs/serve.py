"""A model at an OpenAI-compatible address. Its worker outlives the terminal when it is detached."""

from __future__ import annotations

import argparse
import os
import time
import uuid
from pathlib import Path
from typing import Any

from rich.markup import escape

from cockpit.cli import INTERRUPTED
from cockpit.submit import environment
from cockpit.verbs.output import console, emit, say, table
from engine.protocol.client import Client, find_engine
from engine.protocol.home import Home
from engine.protocol.messages import Ask, OpenService, Problem, ProblemError, Service, ServiceEvent, ServiceRef

KIND = "serve"
GRACE = 5.0
"""Seconds that requests in flight have to finish when the server is stopped."""
GONE = 3.0
"""Seconds that its process then has to end."""
SETTINGS = (
    "target", "host", "port", "task", "constrained", "preset", "slots", "queue", "most_bytes", "seconds", "longest",
    "dtype", "quantization", "backend",
)  # fmt: skip
"""Options that go to the worker under their own names, when they are given."""


def serve(options: argparse.Namespace) -> int:
    """Start one and follow its requests; with `--stop` end one; without a target list them."""
    home = Home.locate(options.home)
    if options.stop:
        return _stop(home, options)
    if options.target is None:
        return _list(home, options.json)
    settings = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    settings["directory"] = str(Path.cwd())
    further: dict[str, str] = {}
    if options.api_key_env:
        further, settings["key_env"] = _key(options.api_key_env), options.api_key_env
    with Client(home) as client:
        service = client.request("service_open", OpenService(kind=KIND, environment=environment() | further)).id
        try:
            started = _start(client, service, settings)
        except BaseException:
            client.request("service_close", ServiceRef(service=service))
            raise
        return _told(client, service, started, options)


def _key(name: str) -> dict[str, str]:
    """The variable with the key. Raises ValueError when the shell has none: the key itself is not to be given on a command line."""
    if not os.environ.get(name):
        raise ValueError(
            f"the variable {name} holds no key: export {name}=… first (--api-key-env takes a variable's name)"
        )
    return {name: os.environ[name]}


def _start(client: Client, service: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the worker answers: `address target label device template note`. Raises ProblemError."""
    label = escape(settings["target"])
    with console().status(f"loading {label}") as status:

        def said(event: ServiceEvent) -> None:
            done, total = event.data.get("done", 0), event.data.get("total", 0)
            share = f" {done / total:.0%}" if total else ""
            status.update(f"{label}: {escape(str(event.data.get('stage', event.kind)))}{share}")

        started: dict[str, Any] = client.ask(_asking(service, "start", settings), said)
    return started


def _asking(service: str, question: str, arguments: dict[str, Any]) -> Ask:
    return Ask(service=service, request=uuid.uuid4().hex, question=question, arguments=arguments)


def _told(client: Client, service: str, started: dict[str, Any], options: argparse.Namespace) -> int:
    """Say where it is; then leave it, or follow it until ctrl+c ends it."""
    if options.json:
        emit({"service": service, **started})
    else:
        print(started["address"], flush=True)
    say(f"{started['label']} is served at {started['address']} on {started['device']}.", "bold")
    if not started["template"]:
        say(
            "It has no chat template: it continues texts at /v1/completions, and refuses /v1/chat/completions.",
            "yellow",
        )
    if started["note"]:
        say(started["note"], "dim")
    if options.detach:
        say(f"It goes on without this terminal. Stop it: cockpit serve --stop {service}")
        return 0
    say("ctrl+c stops it.", "dim")
    try:
        _follow(client, service, started["label"])
    except KeyboardInterrupt:
        say(f"\nStopping; requests in flight have {GRACE:g} s to finish. Again ctrl+c: at once.", "dim")
        try:
            _end(client, service, GRACE)
        except KeyboardInterrupt:
            client.request("service_close", ServiceRef(service=service))
        say("Stopped.", "dim")
    return INTERRUPTED


def _follow(client: Client, service: str, label: str) -> None:
    """A line for each request, and in a terminal one that says how it goes, until the worker ends: ProblemError."""
    screen = console()
    with screen.status("no requests yet") as status:

        def said(event: ServiceEvent) -> None:
            if event.kind == "figures":
                status.update(f"{escape(label)}: {escape(summary(event.data))}")
            elif event.kind == "requests":
                for request in event.data["requests"]:
                    say(line(request), "" if request["status"] < 400 else "yellow")
                if event.data["left_out"]:
                    say(f"… and {event.data['left_out']} more before them", "dim")

        client.ask(_asking(service, "follow", {}), said)


def summary(figures: dict[str, float]) -> str:
    """How a server does, in one line."""
    parts = [f"{figures.get(name, 0):,.0f} {name}" for name in ("running", "queued", "served", "errors")]
    return " · ".join([*parts, f"{figures.get('tokens_per_second', 0):,.1f} tok/s"])


def line(request: dict[str, Any]) -> str:
    """One request, answered or refused."""
    moment = time.strftime("%H:%M:%S", time.localtime(request["time"]))
    head = f"{moment}  {request['status']}  {request['path']}"
    if not request["tokens"]:
        return f"{head}  {request['word']}"
    rate = request["tokens"] / request["seconds"] if request["seconds"] else 0.0
    word = "" if request["word"] == "served" else f"  {request['word']}"
    return (
        f"{head}  {request['prompt_tokens']} + {request['tokens']} tokens in {request['seconds']:.2f} s"
        f" ({rate:.0f} tok/s, first after {request['first']:.2f} s){word}"
    )


def _end(client: Client, service: str, seconds: float) -> None:
    """Until it is gone. Raises ProblemError."""
    client.ask(_asking(service, "stop", {"seconds": seconds}), lambda _: None)
    deadline = time.monotonic() + GONE
    while any(each.id == service for each in client.request("hello").services):
        if time.monotonic() > deadline:
            client.request("service_close", ServiceRef(service=service))
            return
        time.sleep(0.05)


def _servers(home: Home) -> list[Service]:
    """Where no engine runs, nothing is served."""
    if find_engine(home) is None:
        return []
    with Client(home, start=False) as client:
        return [each for each in client.request("hello").services if each.kind == KIND]


def _list(home: Home, as_json: bool) -> int:
    servers = _servers(home)
    if as_json:
        emit([{"service": each.id, "target": each.target, "address": each.detail, **each.figures} for each in servers])
    elif servers:
        columns = ("service", "target", "address", "requests")
        table(columns, [(each.id, each.target, each.detail, summary(each.figures)) for each in servers])
    else:
        say("Nothing is served. cockpit serve TARGET")
    return 0


def _stop(home: Home, options: argparse.Namespace) -> int:
    """The server named by its id, target, port or address; the only one without a name. Raises ProblemError."""
    servers = _servers(home)
    chosen = [each for each in servers if options.target is None or _is(each, options.target)]
    if len(chosen) != 1:
        told = ", ".join(f"{each.id} ({each.target} at {each.detail})" for each in servers) or "none"
        which = f" by the name {options.target}" if options.target else ""
        raise ProblemError(
            Problem(
                title=f"There are {len(chosen)} servers{which}" if chosen else f"There is no server{which}",
                cause=f"open: {told}",
                hint="cockpit serve --stop SERVICE",
            )
        )
    with Client(home, start=False) as client:
        _end(client, chosen[0].id, GRACE)
    if options.json:
        emit({"service": chosen[0].id, "stopped": True})
    else:
        say(f"{chosen[0].id} has ended.")
    return 0


def _is(server: Service, name: str) -> bool:
    port = server.detail.removesuffix("/v1").rpartition(":")[2]
    return name in (server.id, server.target, server.detail, server.detail.removesuffix("/v1"), port)
