"""How a client comes to its engine: where its socket is, whether the engine can still answer, and what starts one.

`LocalReach` in `client` finds the engine of a home on this host. The cockpit has another one for an engine that it
reaches through ssh.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import zmq

from engine.protocol import sockets, wire
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.process import is_stopped

REBIND_TIMEOUT = 4.0
"""Seconds that an engine which runs, but has no socket, may take to notice and bind anew. It looks every second."""
CONNECT_TIMEOUT = 10.0
"""Seconds after which an engine that runs and accepts no connection counts as unreachable."""
UNREAD = 10_000
"""Messages that wait for a client inside ZeroMQ. Then they wait in the engine, which drops events in the end."""


class Reach(Protocol):
    """The way to one engine. The methods block, and may be called from any thread."""

    def start(self) -> Problem | None:
        """Start the engine if none runs. Returns what the user should know about one that was started. Raises
        ProblemError."""

    def open(self) -> tuple[wire.Connection, zmq.Socket[bytes]]:
        """The running supervisor, and a socket that is connected to it. Raises ProblemError."""

    def check(self, connection: wire.Connection) -> None:
        """Raises ProblemError when no reply can come from this supervisor any more."""


def timeout_error(operation: str, seconds: float) -> ProblemError:
    return unreachable_error(f"no reply to '{operation}' within {seconds:g} s")


def unreachable_error(cause: str, hint: str = "") -> ProblemError:
    return ProblemError(
        Problem(
            code="engine.unreachable",
            title="The engine does not answer",
            cause=cause,
            hint=hint or "see `cockpit engine status`, and engine.log in the home's engine folder",
        )
    )


def not_running_error(home: Home) -> ProblemError:
    return ProblemError(
        Problem(
            code="engine.not_running",
            title="No engine is running",
            cause=f"for {home.root}",
            hint="cockpit engine start",
        )
    )


def locate_engine(home: Home) -> wire.Connection:
    """The connection of the running supervisor, once its socket is there and has been found to be ours.

    Raises ProblemError at once when no supervisor runs or when the socket is another user's, and after `REBIND_TIMEOUT`
    when the process runs without a socket.
    """
    deadline = time.monotonic() + REBIND_TIMEOUT
    while connection := find_engine(home):
        if sockets.check_peer(connection.control):
            return connection
        if is_stopped(connection.pid):
            raise stopped_error(connection)
        if time.monotonic() > deadline:
            raise unreachable_error(
                f"its process {connection.pid} runs, but nobody listens at {connection.control}: the socket was "
                "removed, or this process sees another file system",
                "`cockpit engine stop` ends it by a signal, and running jobs go on; then start it again",
            )
        time.sleep(0.05)
    raise not_running_error(home)


def check_process(connection: wire.Connection) -> None:
    """Raises ProblemError when the supervisor cannot answer, because its process has ended or is stopped."""
    if not wire.is_running(connection):
        raise unreachable_error(f"its process {connection.pid} has ended")
    if is_stopped(connection.pid):
        raise stopped_error(connection)


def stopped_error(connection: wire.Connection) -> ProblemError:
    return unreachable_error(
        f"its process {connection.pid} is stopped by a signal or a debugger", f"kill -CONT {connection.pid}"
    )


def open_socket(home: Home) -> tuple[wire.Connection, zmq.Socket[bytes]]:
    """The running supervisor, and a socket that is connected to it. The socket never connects again by itself: another
    process may be there by then. Raises ProblemError, see `locate_engine`."""
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while True:
        connection = locate_engine(home)
        if socket := dial(connection.control, 0.5):
            return connection, socket
        check_process(connection)
        if time.monotonic() > deadline:
            raise unreachable_error(f"its process {connection.pid} runs, but accepts no connection")


def dial(address: str, seconds: float) -> zmq.Socket[bytes] | None:
    """A socket that is connected to `address`; None when that takes longer: many others are connecting, or the
    supervisor has just ended."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvhwm = UNREAD
    socket.reconnect_ivl = -1
    socket.immediate = 1
    socket.connect(address)
    if socket.poll(int(seconds * 1000), zmq.POLLOUT):
        return socket
    socket.close(linger=0)
    return None


def is_connected(socket: zmq.Socket[Any]) -> bool:
    """Whether the peer is still there, or is just being connected to."""
    if socket.closed:
        return False
    events = socket.get(zmq.EVENTS)
    return isinstance(events, int) and bool(events & zmq.POLLOUT)


def find_engine(home: Home) -> wire.Connection | None:
    """The connection of the supervisor that runs on this host, or None."""
    connection = wire.read_connection(home)
    if connection and wire.is_running(connection):
        return connection
    return None
