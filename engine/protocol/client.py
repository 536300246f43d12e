"""Clients of the supervisor: find or start it, send requests, attach and follow events.

`Client` blocks, for the command line; `AsyncClient` (in `async_client`) is its counterpart for the app. Both use
`Tracker` to notice missing events.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from engine.protocol import wire
from engine.protocol.home import Home
from engine.protocol.messages import (
    OPERATIONS,
    PROTOCOL,
    Ask,
    Closing,
    Event,
    Message,
    Nothing,
    Problem,
    ProblemError,
    Reply,
    Request,
    ServiceEvent,
    Snapshot,
)

EVENT_TIMEOUT = 3.0
"""Seconds without an event after which a client attaches again. Telemetry comes every second."""


class Tracker:
    """The sequence numbers of one attachment."""

    def __init__(self) -> None:
        self.session = ""
        self.seq = 0

    def start_at(self, snapshot: Snapshot) -> None:
        self.session, self.seq = snapshot.session, snapshot.seq

    def accept(self, event: Event) -> bool | None:
        """True: the event is the next one. None: the snapshot includes it. False: events are missing, or the session is
        another; attach again."""
        if event.session != self.session:
            return False
        if event.seq <= self.seq:
            return None
        whole = event.seq == self.seq + 1
        self.seq = event.seq
        return whole


def pack_request(operation: str, message: Message | None) -> tuple[str, bytes]:
    """A new request's id, and its encoded envelope."""
    request_id = uuid.uuid4().hex
    return request_id, wire.encode(
        Request(id=request_id, operation=operation, body=wire.encode_raw(message or Nothing()))
    )


def unpack_reply(operation: str, reply: Reply) -> Any:
    """The decoded result. Raises ProblemError for a problem, or another version of the protocol."""
    if reply.protocol != PROTOCOL:
        raise ProblemError(wire.protocol_mismatch(reply.protocol))
    if reply.problem is not None:
        raise ProblemError(reply.problem)
    return wire.decode(reply.result, OPERATIONS[operation].reply)


def timeout_error(operation: str, seconds: float) -> ProblemError:
    return ProblemError(
        Problem(
            code="engine.unreachable",
            title="The engine does not answer",
            cause=f"no reply to '{operation}' within {seconds:g} s",
            hint="see `cockpit engine status`, and engine.log in the home's engine folder",
        )
    )


def find_engine(home: Home) -> wire.Connection | None:
    """The connection of the supervisor that runs on this host, or None."""
    for connection in wire.read_connections(home):
        if wire.is_alive(connection.pid, connection.start_time):
            return connection
    return None


def ensure_engine(home: Home, timeout: float = 20.0) -> wire.Connection:
    """The connection of the supervisor, after starting one if none runs. Raises ProblemError when it does not start."""
    if connection := find_engine(home):
        return connection
    wire.make_socket_directory(home)
    with contextlib.suppress(OSError):  # read-only or full: the engine starts all the same, and says so
        home.create()
    log_path = _choose_log(home)
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.supervisor", "--home", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=build_engine_environment(),
        )
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if connection := find_engine(home):
            return connection
        status = process.poll()
        # Status 3: another supervisor has the lock. It will do as well, so wait for its connection file.
        if status not in (None, 0, 3):
            break
        time.sleep(0.02)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-12:])
    raise ProblemError(
        Problem(
            code="engine.not_started",
            title="The engine did not start",
            cause=tail or "its log is empty",
            hint=f"read {log_path}",
        )
    )


def _choose_log(home: Home) -> Path:
    """engine.log, or one beside the sockets where the home cannot be written."""
    try:
        with open(home.engine_log, "ab"):
            return home.engine_log
    except OSError:
        return home.sockets / home.engine_log.name


def build_engine_environment() -> dict[str, str]:
    """The environment for engine processes. When cockpit runs from a checkout, it makes the checkout importable (-P
    removes the working directory from the path)."""
    environment = dict(os.environ)
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(package_root) != "site-packages":
        paths = [package_root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


class Client:
    """A blocking client, and a context manager. With `start=False` it raises ProblemError when no engine runs."""

    def __init__(self, home: Home, *, start: bool = True, timeout: float = 30.0) -> None:
        self.home = home
        self.timeout = timeout
        if start:
            ensure_engine(home)
        elif find_engine(home) is None:
            raise ProblemError(
                Problem(
                    code="engine.not_running",
                    title="No engine is running",
                    cause=f"for {home.root}",
                    hint="cockpit engine start",
                )
            )
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvhwm = 0
        self._socket.connect(wire.control_address(home))
        self._events: deque[Event] = deque()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def request(self, operation: str, message: Message | None = None, timeout: float | None = None) -> Any:
        """Send a request and return the operation's reply. Raises ProblemError for a problem, or without a reply in
        `timeout` seconds."""
        seconds = self.timeout if timeout is None else timeout
        request_id, payload = pack_request(operation, message)
        self._socket.send(payload)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            reply = self._receive(left)
            if reply is not None and reply.id == request_id:
                return unpack_reply(operation, reply)
        raise timeout_error(operation, seconds)

    def ask(self, question: Ask, on_event: Callable[[ServiceEvent], None]) -> Any:
        """Send a request to a service and wait for its result, however long it takes. `on_event` gets the events that
        come meanwhile.

        Raises ProblemError for a problem, or when the engine sends nothing any more.
        """
        self.request("attach")
        request_id, payload = pack_request("service_ask", question)
        self._socket.send(payload)
        received = time.monotonic()
        while time.monotonic() - received < EVENT_TIMEOUT:
            reply = self._receive(1.0)
            while self._events:
                received = time.monotonic()
                body = decode_known(self._events.popleft())
                if isinstance(body, ServiceEvent) and body.request == question.request:
                    on_event(body)
            if reply is not None and reply.id == request_id:
                return unpack_reply("service_ask", reply).result
        raise timeout_error(question.question, EVENT_TIMEOUT)

    def follow(self) -> Iterator[Any]:
        """Yield a `Snapshot`, then every published event in order, and another `Snapshot` after events were missed.

        Yields None about once a second while nothing happens. When the supervisor has ended, a new one is started and
        attached to.
        """
        tracker = Tracker()
        while True:
            try:
                snapshot = self.request("attach", timeout=EVENT_TIMEOUT)
            except ProblemError as error:
                if error.problem.code != "engine.unreachable":
                    raise
                ensure_engine(self.home)
                continue
            tracker.start_at(snapshot)
            yield snapshot
            yield from self._read_events(tracker)

    def _read_events(self, tracker: Tracker) -> Iterator[Any]:
        received = time.monotonic()
        while time.monotonic() - received < EVENT_TIMEOUT:
            if not self._events:
                self._receive(1.0)
            if not self._events:
                yield None
                continue
            received = time.monotonic()
            event = self._events.popleft()
            follows = tracker.accept(event)
            if follows is False:
                return
            if follows:
                body = decode_known(event)
                if body is not None:
                    yield body
                if isinstance(body, Closing):
                    return

    def _receive(self, seconds: float) -> Reply | None:
        """Receive one message within `seconds`: a reply is returned, an event is kept for `follow`."""
        if not self._socket.poll(int(max(seconds, 0) * 1000)):
            return None
        kind, payload = self._socket.recv_multipart()
        if kind == wire.REPLY:
            return wire.decode(payload, Reply)
        self._events.append(wire.decode(payload, Event))
        return None


def decode_known(event: Event) -> Any:
    """The event's body, or None for a type that only a newer supervisor knows."""
    try:
        return wire.decode_body(event.body)
    except Exception:  # noqa: BLE001 - an event that cannot be decoded is ignored
        return None
