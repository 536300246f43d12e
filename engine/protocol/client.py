"""Talking to the supervisor: find or start it, ask, attach, follow.

`Client` blocks and serves the command line; `AsyncClient` (in `async_client`) is its twin for the app. Both lean on
`Tracker`, which knows whether an event stream is whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
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
"""Seconds without an event (telemetry comes every second) after which a follower attaches again."""


class Tracker:
    """Sequence numbers of one attachment. `accept` answers whether an event follows; a gap or another session needs a
    new attach."""

    def __init__(self) -> None:
        self.session = ""
        self.seq = 0

    def start_at(self, snapshot: Snapshot) -> None:
        self.session, self.seq = snapshot.session, snapshot.seq

    def accept(self, event: Event) -> bool | None:
        """True: next in order. None: already in the snapshot. False: something is missing."""
        if event.session != self.session:
            return False
        if event.seq <= self.seq:
            return None
        whole = event.seq == self.seq + 1
        self.seq = event.seq
        return whole


def pack_request(operation: str, message: Message | None) -> tuple[str, bytes]:
    """The request's id and its encoded envelope."""
    request_id = uuid.uuid4().hex
    return request_id, wire.encode(
        Request(id=request_id, operation=operation, body=wire.encode_raw(message or Nothing()))
    )


def unpack_reply(operation: str, reply: Reply) -> Any:
    """The typed result. Raises ProblemError for a problem or another protocol version."""
    if reply.protocol != PROTOCOL:
        raise ProblemError(wire.protocol_mismatch(reply.protocol))
    if reply.problem is not None:
        raise ProblemError(reply.problem)
    return wire.decode(reply.result, OPERATIONS[operation].reply)


def timeout_error(operation: str, seconds: float) -> ProblemError:
    return ProblemError(
        Problem(
            title="The engine does not answer",
            cause=f"no reply to '{operation}' within {seconds:g} s",
            hint="look at `cockpit engine status`, and at engine.log in the home's engine folder",
        )
    )


def find_engine(home: Home) -> wire.Connection | None:
    """The connection of a supervisor that is alive on this host, or None."""
    connection = wire.read_connection(home)
    if connection and wire.is_alive(connection.pid, connection.start_time):
        return connection
    return None


def ensure_engine(home: Home, timeout: float = 20.0) -> wire.Connection:
    """The running supervisor's connection, after starting one if there is none. Raises ProblemError when it does not
    come up."""
    if connection := find_engine(home):
        return connection
    home.create()
    wire.make_socket_directory(home)
    with open(home.engine_log, "ab") as log:
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
        # Status 3: another supervisor took the lock first. That one is ours to use, so keep looking.
        if status not in (None, 0, 3):
            break
        time.sleep(0.02)
    tail = "\n".join(home.engine_log.read_text(errors="replace").splitlines()[-12:])
    raise ProblemError(
        Problem(title="The engine did not start", cause=tail or "its log is empty", hint=f"read {home.engine_log}")
    )


def build_engine_environment() -> dict[str, str]:
    """The starter's environment, with the checkout importable when cockpit runs from one (-P drops the working
    directory)."""
    environment = dict(os.environ)
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(package_root) != "site-packages":
        paths = [package_root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


class Client:
    """A blocking connection. Use as a context manager; `start=False` raises ProblemError when no engine runs."""

    def __init__(self, home: Home, *, start: bool = True, timeout: float = 30.0) -> None:
        self.home = home
        self.timeout = timeout
        if start:
            ensure_engine(home)
        elif find_engine(home) is None:
            raise ProblemError(
                Problem(title="No engine is running", cause=f"for {home.root}", hint="cockpit engine start")
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
        """Ask and wait. Returns the operation's reply type; raises ProblemError for a problem or no answer in `timeout`
        seconds."""
        seconds = self.timeout if timeout is None else timeout
        request_id, payload = pack_request(operation, message)
        self._socket.send(payload)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            reply = self._receive(left)
            if reply is not None and reply.id == request_id:
                return unpack_reply(operation, reply)
        raise timeout_error(operation, seconds)

    def ask(self, question: Ask, said: Callable[[ServiceEvent], None]) -> Any:
        """Put a question to a service and wait for its answer, however long it takes; `said` hears what comes
        meanwhile.

        Raises ProblemError for a problem, or when the engine falls silent.
        """
        self.request("attach")
        request_id, payload = pack_request("service_ask", question)
        self._socket.send(payload)
        heard = time.monotonic()
        while time.monotonic() - heard < EVENT_TIMEOUT:
            reply = self._receive(1.0)
            while self._events:
                heard = time.monotonic()
                body = decode_known(self._events.popleft())
                if isinstance(body, ServiceEvent) and body.request == question.request:
                    said(body)
            if reply is not None and reply.id == request_id:
                return unpack_reply("service_ask", reply).result
        raise timeout_error(question.question, EVENT_TIMEOUT)

    def follow(self) -> Iterator[Any]:
        """A `Snapshot`, then every published body in order; another `Snapshot` whenever something was missed.

        Yields None about once a second when nothing happens, so that a caller can look at the clock. Survives the
        supervisor: when it is gone, a new one is started and attached to.
        """
        tracker = Tracker()
        while True:
            try:
                snapshot = self.request("attach", timeout=EVENT_TIMEOUT)
            except ProblemError as error:
                if error.problem.title != "The engine does not answer":
                    raise
                ensure_engine(self.home)
                continue
            tracker.start_at(snapshot)
            yield snapshot
            yield from self._whole_stream(tracker)

    def _whole_stream(self, tracker: Tracker) -> Iterator[Any]:
        heard = time.monotonic()
        while time.monotonic() - heard < EVENT_TIMEOUT:
            if not self._events:
                self._receive(1.0)
            if not self._events:
                yield None
                continue
            heard = time.monotonic()
            event = self._events.popleft()
            verdict = tracker.accept(event)
            if verdict is False:
                return
            if verdict:
                body = decode_known(event)
                if body is not None:
                    yield body
                if isinstance(body, Closing):
                    return

    def _receive(self, seconds: float) -> Reply | None:
        """One frame, if one comes in time: a reply is returned, an event is kept for `follow`."""
        if not self._socket.poll(int(max(seconds, 0) * 1000)):
            return None
        kind, payload = self._socket.recv_multipart()
        if kind == wire.REPLY:
            return wire.decode(payload, Reply)
        self._events.append(wire.decode(payload, Event))
        return None


def decode_known(event: Event) -> Any:
    """The body, or None for a kind that a newer supervisor knows and we do not."""
    try:
        return wire.decode_body(event.body)
    except Exception:  # noqa: BLE001 - lenient with what machines say
        return None
