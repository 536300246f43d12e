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

from engine.protocol import logout, sockets, wire
from engine.protocol.environment import add_code_path, is_secret, remove_launcher_variables
from engine.protocol.home import Home, open_private
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
from engine.protocol.reach import Reach, check_process, is_connected, open_socket, timeout_error, unreachable_error
from engine.protocol.reach import find_engine as find_engine

EVENT_TIMEOUT = 3.0
"""Seconds without an event after which a client attaches again. Telemetry comes every second."""
LOST = ("engine.unreachable", "engine.not_running")
"""Codes of problems after which a client that follows starts an engine, if none is left, and attaches again."""
LOOK = 0.5
"""Seconds between looks at the engine's process while a reply is waited for."""


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


def ensure_engine(home: Home, timeout: float = 20.0) -> wire.Connection:
    """The connection of the supervisor, after starting one if none runs. Raises ProblemError when it does not start."""
    if connection := find_engine(home):
        return connection
    with contextlib.suppress(OSError):  # read-only or full: the engine starts all the same, and says so
        home.create()
    log = _choose_log(home)
    command = [sys.executable, "-P", "-m", "engine.supervisor", "--home", str(home.root)]
    survivor = logout.build_survivor(command)
    for attempt in dict.fromkeys((tuple(survivor), tuple(command))):
        if connection := _start_engine(home, list(attempt), timeout, log):
            return connection
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    raise ProblemError(
        Problem(
            code="engine.not_started",
            title="The engine did not start",
            cause=tail or "its log is empty",
            hint=f"read {log}",
        )
    )


def _start_engine(home: Home, command: list[str], timeout: float, log_path: Path) -> wire.Connection | None:
    """Start a supervisor; None when its process ends at once."""
    with open_private(log_path) as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={name: value for name, value in build_engine_environment().items() if not is_secret(name)},
        )
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if connection := find_engine(home):
            return connection
        # Status 3: another supervisor has the lock. It will do as well, so wait for its connection file.
        if process.poll() not in (None, 0, 3):
            break
        time.sleep(0.02)
    return None


def start_engine(home: Home) -> Problem | None:
    """Start a supervisor if none runs. Returns why one that was started would end at the last logout. Raises
    ProblemError as `ensure_engine`."""
    if find_engine(home):
        return None
    ensure_engine(home)
    return logout.find_problem()


def _choose_log(home: Home) -> Path:
    """engine.log, or one in the spare directory where the home cannot be written."""
    try:
        open_private(home.engine_log).close()
        return home.engine_log
    except OSError:
        return sockets.make_spare(home) / home.engine_log.name


def build_engine_environment() -> dict[str, str]:
    """The environment for processes of the engine that this one starts."""
    return add_code_path(remove_launcher_variables(os.environ))


class LocalReach:
    """The engine of a home on this host, see `Reach`."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def start(self) -> Problem | None:
        return start_engine(self._home)

    def open(self) -> tuple[wire.Connection, zmq.Socket[bytes]]:
        return open_socket(self._home)

    def check(self, connection: wire.Connection) -> None:
        check_process(connection)


def find_reach(engine: Home | Reach) -> Reach:
    """The way to an engine: of a home on this host, or as it was given."""
    return LocalReach(engine) if isinstance(engine, Home) else engine


class Client:
    """A blocking client, and a context manager. With `start=False` it raises ProblemError when no engine runs."""

    def __init__(self, engine: Home | Reach, *, start: bool = True, timeout: float = 30.0) -> None:
        self._reach = find_reach(engine)
        self.timeout = timeout
        self.warning = self._reach.start() if start else None
        """What the user should know about the engine that this client has started."""
        self._connection, self._socket = self._reach.open()
        self._events: deque[Event] = deque()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close(linger=0)

    def request(self, operation: str, message: Message | None = None, timeout: float | None = None) -> Any:
        """Send a request and return the operation's reply. Raises ProblemError for a problem, or without a reply in
        `timeout` seconds."""
        seconds = self.timeout if timeout is None else timeout
        request_id = self._send(operation, message)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            reply = self._receive(min(left, LOOK))
            if reply is not None and reply.id == request_id:
                return unpack_reply(operation, reply)
            if reply is None:
                self._check_peer()
        raise timeout_error(operation, seconds)

    def _send(self, operation: str, message: Message | None) -> str:
        """Send a request, to the next supervisor when the one before has gone, and return its id. Raises
        ProblemError."""
        if not is_connected(self._socket):
            self._socket.close(linger=0)
            self._connection, self._socket = self._reach.open()
        request_id, payload = pack_request(operation, message)
        self._socket.send(payload)
        return request_id

    def _check_peer(self) -> None:
        """Raises ProblemError when no reply can come any more."""
        self._reach.check(self._connection)
        if not is_connected(self._socket) and not self._socket.poll(0):
            raise unreachable_error(f"its process {self._connection.pid} has closed the connection")

    def ask(self, question: Ask, on_event: Callable[[ServiceEvent], None]) -> Any:
        """Send a request to a service and wait for its result, however long it takes. `on_event` gets the events that
        come meanwhile.

        Raises ProblemError for a problem, or when the engine sends nothing any more.
        """
        self.request("attach")
        request_id = self._send("service_ask", question)
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
                if error.problem.code not in LOST:
                    raise
                self._reach.start()
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
                if not is_connected(self._socket):
                    return
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
