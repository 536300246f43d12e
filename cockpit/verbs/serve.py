"""`cockpit serve`: a model at an OpenAI-compatible address. With `--detach` its worker outlives the terminal."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cockpit import remote_names
from cockpit.connection.submission import shell_environment
from cockpit.exit_status import INTERRUPTED
from cockpit.language.translate import tr, tr_engine
from cockpit.verbs.output import console, emit, format_progress, say, say_warning, show_problem, table
from engine.protocol.client import Client, find_engine
from engine.protocol.console import text
from engine.protocol.home import Home
from engine.protocol.messages import Ask, OpenService, Problem, ProblemError, Service, ServiceEvent, ServiceRef

KIND = "serve"
GRACE = 5.0
"""Seconds that requests in flight have to finish when the server is stopped."""
EXIT_TIMEOUT = 3.0
"""Seconds that its process then has to exit."""
SETTINGS = (
    "target", "host", "port", "task", "constrained", "preset", "slots", "queue", "most_bytes", "seconds", "longest",
    "dtype", "quantization", "adapters", "backend", "context", "memory_share",
)  # fmt: skip
"""Options that are passed to the worker under their own names, when they are given."""


def serve(options: argparse.Namespace) -> int:
    """Start a server and follow its requests; with `--stop` stop one; without a target list them."""
    home = Home.locate(options.home)
    if options.stop:
        return _stop(home, options)
    if options.target is None:
        return _list(home, options.json)
    settings = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    settings["directory"] = str(Path.cwd())
    if options.devices:
        settings["devices"] = _read_devices(options.devices)
    if options.vllm_arguments:
        settings["arguments"] = shlex.split(options.vllm_arguments)
    extra: dict[str, str] = {}
    if options.api_key_env:
        extra, settings["key_env"] = _read_key(options.api_key_env), options.api_key_env
    with Client(home) as client, ended_by_signals(options.detach):
        say_warning(client)
        service = client.request("service_open", OpenService(kind=KIND, environment=shell_environment() | extra)).id
        try:
            started = _start(client, service, settings)
        except BaseException:
            client.request("service_close", ServiceRef(service=service))
            raise
        return _report_start(client, service, started, options)


def _read_devices(given: str) -> list[int]:
    """The numbers of `0,1`. Raises ValueError."""
    if not all(part.strip().isdecimal() for part in given.split(",")):
        raise ValueError(tr("--devices takes numbers, such as 0,1, not {given!r}", given=given))
    return [int(part) for part in given.split(",")]


def _read_key(name: str) -> dict[str, str]:
    """The environment variable with the key. Raises ValueError when it is not set. A key itself must not be on a
    command line."""
    if not os.environ.get(name):
        raise ValueError(
            tr(
                "the variable {name} is not set: export {name}=… first (--api-key-env takes a variable's name)",
                name=name,
            )
        )
    return {name: os.environ[name]}


def _start(client: Client, service: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Start the server. Returns the worker's answer: `address target label device template note`. Raises
    ProblemError."""
    label = settings["target"]
    with console().status(text(tr("loading {label}", label=label))) as status:

        def on_event(event: ServiceEvent) -> None:
            status.update(text(f"{label}: {format_progress(event)}"))

        started: dict[str, Any] = client.ask(_build_ask(service, "start", settings), on_event)
    return started


def _build_ask(service: str, question: str, arguments: dict[str, Any]) -> Ask:
    return Ask(service=service, request=uuid.uuid4().hex, question=question, arguments=arguments)


def _report_start(client: Client, service: str, started: dict[str, Any], options: argparse.Namespace) -> int:
    """Print the address; then leave the server running, or follow it until ctrl+c stops it."""
    if options.json:
        emit({"service": service, **started})
    else:
        print(started["address"], flush=True)
    say(
        tr(
            "{label} is served at {address} on {device}.",
            label=started["label"],
            address=started["address"],
            device=started["device"],
        ),
        "bold",
    )
    if not started["template"]:
        say(
            tr("It has no chat template: it completes texts at /v1/completions, and refuses /v1/chat/completions."),
            "yellow",
        )
    if started["note"]:
        say(started["note"], "dim")
    if options.detach:
        say(
            tr(
                "It keeps running without this terminal. Stop it with: {command} serve --stop {service}",
                command=remote_names.command,
                service=service,
            )
        )
        return 0
    say(tr("ctrl+c stops it."), "dim")
    try:
        _follow(client, service, started["label"])
    except (KeyboardInterrupt, OSError, SystemExit):  # the last two: what reads its output is gone
        _say(
            tr(
                "\nStopping; requests in flight have {GRACE:g} s to finish. Press ctrl+c again to stop at once.",
                GRACE=GRACE,
            )
        )
        try:
            _stop_service(client, service, GRACE)
        except KeyboardInterrupt:
            client.request("service_close", ServiceRef(service=service))
        _say("Stopped.")
    return INTERRUPTED


@contextmanager
def ended_by_signals(detached: bool) -> Iterator[None]:
    """SIGTERM and SIGHUP end a server in the foreground as ctrl+c does: its terminal or its caller is gone."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = () if detached else (signal.SIGTERM, signal.SIGHUP)
    # What nohup has set stays: it asks for a server that goes on without its terminal.
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """`say`, to a terminal that may be gone."""
    with suppress(OSError, SystemExit):  # Rich exits when a pipe is closed
        say(text, "dim")


def _follow(client: Client, service: str, label: str) -> None:
    """Print a line for each request, and in a terminal a line of totals. Runs until the worker ends, which raises
    ProblemError."""
    screen = console()
    with screen.status(tr("no requests yet")) as status:

        def on_event(event: ServiceEvent) -> None:
            if event.kind == "figures":
                status.update(text(f"{label}: {format_figures(event.data)}"))
            elif event.kind == "requests":
                for request in event.data["requests"]:
                    say(format_request(request), "" if request["status"] < 400 else "yellow")
                if event.data["left_out"]:
                    say(tr("… and {left_out} more before them", left_out=event.data["left_out"]), "dim")

        client.ask(_build_ask(service, "follow", {}), on_event)


def format_figures(figures: dict[str, float]) -> str:
    """A server's figures in one line."""
    parts = [f"{figures.get(name, 0):,.0f} {name}" for name in ("running", "queued", "served", "errors")]
    return " · ".join(
        [*parts, tr("{tokens_per_second:,.1f} tok/s", tokens_per_second=figures.get("tokens_per_second", 0))]
    )


def format_request(request: dict[str, Any]) -> str:
    """One request in one line."""
    moment = time.strftime("%H:%M:%S", time.localtime(request["time"]))
    head = f"{moment}  {request['status']}  {request['path']}"
    if not request["tokens"]:
        return f"{head}  {request['word']}"
    rate = request["tokens"] / request["seconds"] if request["seconds"] else 0.0
    word = "" if request["word"] == "served" else f"  {request['word']}"
    return tr(
        "{head}  {prompt_tokens} + {tokens} tokens in {seconds:.2f} s ({rate:.0f} tok/s, first "
        "after {first:.2f} s){word}",
        head=head,
        prompt_tokens=request["prompt_tokens"],
        tokens=request["tokens"],
        seconds=request["seconds"],
        rate=rate,
        first=request["first"],
        word=word,
    )


def _stop_service(client: Client, service: str, seconds: float) -> None:
    """Stop the service, and wait until it is gone. Raises ProblemError."""
    client.ask(_build_ask(service, "stop", {"seconds": seconds}), lambda _: None)
    deadline = time.monotonic() + EXIT_TIMEOUT
    while any(each.id == service for each in client.request("hello").services):
        if time.monotonic() > deadline:
            client.request("service_close", ServiceRef(service=service))
            return
        time.sleep(0.05)


def _servers(home: Home) -> list[Service]:
    """The servers of this home; none when no engine is running."""
    if find_engine(home) is None:
        return []
    with Client(home, start=False) as client:
        return [each for each in client.request("hello").services if each.kind == KIND]


def _list(home: Home, as_json: bool) -> int:
    servers = _servers(home)
    if as_json:
        emit([_document(each) for each in servers])
    elif servers:
        columns = ("service", "target", "address", "requests")
        table(columns, [(each.id, each.target, each.address, _format_state(each)) for each in servers])
        for each in servers:
            if each.problem:
                show_problem(each.problem)
                say(
                    tr(
                        "→ {command} serve --stop {id} takes it off this list", command=remote_names.command, id=each.id
                    ),
                    "cyan",
                )
    else:
        say(tr("No server is running. Start one with: {command} serve TARGET", command=remote_names.command))
    return 0


def _document(server: Service) -> dict[str, Any]:
    """A server as JSON: `service target address state`, its figures, and the problem of one that died."""
    document = {"service": server.id, "target": server.target, "address": server.address, "state": server.state}
    return document | server.figures | ({"problem": server.problem} if server.problem else {})


def _format_state(server: Service) -> str:
    if server.state != "ended":
        return format_figures(server.figures)
    return tr("ended: {tr_engine}", tr_engine=tr_engine(server.problem.title)) if server.problem else "ended"


def _stop(home: Home, options: argparse.Namespace) -> int:
    """Stop the server with this id, target, port or address; without a name, the only one. Raises ProblemError."""
    servers = _servers(home)
    chosen = [each for each in servers if options.target is None or _matches(each, options.target)]
    chosen = [each for each in chosen if each.state != "ended"] or chosen
    if len(chosen) != 1:
        listed = (
            ", ".join(
                tr("{id} ({target} at {address})", id=each.id, target=each.target, address=each.address)
                for each in servers
            )
            or "none"
        )
        which = tr(" by the name {target}", target=options.target) if options.target else ""
        raise ProblemError(
            Problem(
                code="server.ambiguous" if chosen else "server.not_found",
                title=tr("There are {chosen} servers{which}", chosen=len(chosen), which=which)
                if chosen
                else tr("There is no server{which}", which=which),
                cause=tr("running: {listed}", listed=listed),
                hint=tr("cockpit serve --stop SERVICE"),
            )
        )
    with Client(home, start=False) as client:
        if chosen[0].state == "ended":
            client.request("service_close", ServiceRef(service=chosen[0].id))
        else:
            _stop_service(client, chosen[0].id, GRACE)
    if options.json:
        emit({"service": chosen[0].id, "stopped": True})
    else:
        say(tr("{id} has stopped.", id=chosen[0].id))
    return 0


def _matches(server: Service, name: str) -> bool:
    port = server.address.removesuffix("/v1").rpartition(":")[2]
    return name in (server.id, server.target, server.address, server.address.removesuffix("/v1"), port)
