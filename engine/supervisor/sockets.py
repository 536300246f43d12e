"""The supervisor's two sockets, which outlive their files: what removes them is noticed, and they are bound anew."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import zmq

from engine.protocol import sockets
from engine.protocol.home import Home
from engine.protocol.problem import ProblemError

UNDELIVERED = 16
"""Messages to one client that wait inside ZeroMQ. `clients.Clients` keeps further ones, by their bytes."""
UNREAD = 1000
"""Messages of one peer that wait inside ZeroMQ. Then the peer waits."""
EARLIER = 16
"""Sockets whose file is gone that are kept bound. ZeroMQ disconnects everybody who came by a socket that it unbinds."""
LONGEST_REQUEST = 64 << 20
"""Bytes. ZeroMQ disconnects a client that sends a longer frame."""


class Sockets:
    """`control` is for clients, `workers` for workers. A process of another user is refused when it connects."""

    def __init__(self, home: Home, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._home = home
        self._generation = 0
        self._bound: dict[str, tuple[Path, os.stat_result]] = {}
        self._earlier: list[tuple[str, Path]] = []
        self.control, self.workers = _make_router(context), _make_router(context)
        self.control.sndhwm, self.control.maxmsgsize = UNDELIVERED, LONGEST_REQUEST
        self.workers.sndhwm = 100_000
        self._bind()

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
        if all(_is_same(path, bound) for path, bound in self._bound.values()):
            return False
        gone = self._bound["control"][0].parent
        self._earlier += [(name, path) for name, (path, _) in self._bound.items()]
        try:
            self._bind()
        except (OSError, ProblemError, zmq.ZMQError) as error:
            print(f"the sockets are gone and cannot be bound anew: {error}", flush=True)
            return False
        print(f"the sockets in {gone} were removed: bound anew, {self.address('control')}", flush=True)
        while len(self._earlier) > EARLIER:
            name, path = self._earlier.pop(0)
            with contextlib.suppress(zmq.ZMQError):
                getattr(self, name).unbind(f"ipc://{path}")
        return True

    def remove(self) -> None:
        """After the sockets were closed: remove their files, and the directory if it is empty then."""
        with contextlib.suppress(OSError):
            for path, bound in self._bound.values():
                if _is_same(path, bound):
                    path.unlink()
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


def _make_router(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.router_mandatory = 1  # report an unreachable or overfull peer as an error, rather than drop the message
    socket.rcvhwm = UNREAD
    socket.linger = 500
    with contextlib.suppress(zmq.ZMQError):  # a system that does not tell whose process connects
        socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    return socket


def _is_same(path: Path, bound: os.stat_result) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino, found.st_uid) == (bound.st_dev, bound.st_ino, bound.st_uid)
