"""The supervisor's two sockets, which outlive their files: what removes them is noticed, and they are bound anew."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from engine.protocol import sockets
from engine.protocol.home import Home
from engine.protocol.problem import ProblemError
from engine.protocol.sockets import name_when_full

UNDELIVERED = 16
"""Messages to one client that wait inside ZeroMQ. `clients.Clients` keeps further ones, by their bytes."""
BACKLOG = 8
"""Connections that wait to be accepted: so many may come after the gate is closed."""
RESERVE = 64
"""Files that can still be opened when the gate is closed, or half of all where that is less."""
UNREAD = 1000
"""Messages of one peer that wait inside ZeroMQ. Then the peer waits."""
EARLIER = 16
"""Sockets whose file is gone that are kept bound. ZeroMQ disconnects everybody who came by a socket that it unbinds."""
LONGEST_REQUEST = 64 << 20
"""Bytes. ZeroMQ disconnects a client that sends a longer frame."""


class Sockets:
    """`control` is for clients, `workers` for workers. A process of another user is refused when it connects."""

    def __init__(self, home: Home, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._home, self._context = home, context
        self._generation = 0
        self._bound: dict[str, tuple[Path, os.stat_result]] = {}
        self._earlier: list[tuple[str, Path]] = []
        self.control, self.workers = _make_router(context), _make_router(context)
        self.control.sndhwm, self.control.maxmsgsize = UNDELIVERED, LONGEST_REQUEST
        self.workers.sndhwm = 100_000
        self._bind()
        self._gate = Gate(self.control, Path(self.address("control").removeprefix("ipc://")))

    def address(self, name: str) -> str:
        """The address of `control` or `workers`."""
        return f"ipc://{self._bound[name][0]}"

    def renew(self) -> bool:
        """Bind anew when a socket's file was removed or replaced; whoever is connected stays so. True when the
        addresses have changed. Raises nothing: what does not work now is tried again."""
        for path, _ in self._bound.values():
            with contextlib.suppress(OSError):
                if path.parent.lstat().st_mode & 0o077:
                    path.parent.chmod(0o700)
        if not self._gate.reopen() or all(_is_same(path, bound) for path, bound in self._bound.values()):
            return False
        gone = self._bound["control"][0].parent
        self._earlier += [(name, path) for name, (path, _) in self._bound.items()]
        try:
            self._bind()
        except (OSError, ProblemError, zmq.ZMQError) as error:
            print(f"the sockets are gone and cannot be bound anew: {error}", flush=True)
            return False
        self._gate.path = self._bound["control"][0]
        print(f"the sockets in {gone} were removed: bound anew, {self.address('control')}", flush=True)
        while len(self._earlier) > EARLIER:
            name, path = self._earlier.pop(0)
            with contextlib.suppress(zmq.ZMQError):
                getattr(self, name).unbind(f"ipc://{path}")
        return True

    def close(self) -> None:
        """Send what waits, close the sockets, and remove their files, and the directory if it is empty then."""
        self._gate.stop()
        self._context.destroy(linger=500)
        with contextlib.suppress(OSError):
            for path, bound in self._bound.values():
                if _is_same(path, bound):
                    path.unlink()
            for _, earlier in self._earlier:
                if earlier.is_socket():
                    earlier.unlink()
            path.parent.rmdir()

    def _bind(self) -> None:
        """Each time at other names, so that a socket that is unbound later takes no newer one's file with it."""
        directory = sockets.make_directory(self._home)
        self._generation += 1
        if self._generation == 1:  # left by a supervisor that was killed
            for left in [*directory.glob("control-*"), *directory.glob("workers-*")]:
                left.unlink(missing_ok=True)
        bound = {}
        for name, socket in (("control", self.control), ("workers", self.workers)):
            path = directory / (name if self._generation == 1 else f"{name}-{self._generation}")
            socket.bind(f"ipc://{path}")
            path.chmod(0o600)
            bound[name] = (path, path.lstat())
        self._bound = bound


class Gate:
    """Lets no client in while too few files can be opened: ZeroMQ ends the process when it cannot accept a connection.

    The socket's file has another name meanwhile, which those who are connected do not notice. A thread of its own
    watches, since clients may come faster than the loop turns.
    """

    def __init__(self, socket: zmq.Socket[bytes], path: Path) -> None:
        self.path = path
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = limit if limit != resource.RLIM_INFINITY else sys.maxsize
        self._reserve = min(self._limit // 2, RESERVE)
        self._free = self._count_free()
        self._closed = False
        self._lock = threading.Lock()
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
        )
        self._socket = socket
        self._thread = threading.Thread(target=self._watch, name="gate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, which closes its own socket: ZeroMQ ends the process when another thread does."""
        self._socket.disable_monitor()
        self._thread.join()

    def reopen(self) -> bool:
        """Let clients in again when there is room. False while there is none. Call it once a second."""
        with self._lock:
            self._free = self._count_free()
            if self._closed and self._free >= self._reserve:
                with contextlib.suppress(OSError):
                    name_when_full(self.path).rename(self.path)
                self._closed = False
            return not self._closed

    def _watch(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            except zmq.ZMQError:
                return
            if event == zmq.EVENT_MONITOR_STOPPED:
                self._monitor.close(0)
                return
            with self._lock:
                self._free += -1 if event == zmq.EVENT_ACCEPTED else 1
                if self._free < self._reserve and not self._closed:
                    with contextlib.suppress(OSError):
                        self.path.rename(name_when_full(self.path))
                    self._closed = True
                    print(f"too many clients: {self._limit} files may be open, no more are let in", flush=True)

    def _count_free(self) -> int:
        try:
            return self._limit - sum(1 for _ in Path("/dev/fd").iterdir())
        except OSError:
            return self._limit


def _make_router(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.router_mandatory = 1  # report an unreachable or overfull peer as an error, rather than drop the message
    socket.rcvhwm = UNREAD
    socket.linger = 500
    socket.backlog = BACKLOG
    with contextlib.suppress(zmq.ZMQError):  # a system that does not tell whose process connects
        socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    return socket


def _is_same(path: Path, bound: os.stat_result) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino, found.st_uid) == (bound.st_dev, bound.st_ino, bound.st_uid)
