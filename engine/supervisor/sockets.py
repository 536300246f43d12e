"""The supervisor's two sockets, which outlive their files: what removes them is noticed, and they are made anew."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import zmq

from engine.protocol import sockets
from engine.protocol.home import Home
from engine.protocol.problem import ProblemError
from engine.supervisor.door import Door

UNDELIVERED = 16
"""Messages to one client that wait inside ZeroMQ. `clients.Clients` keeps further ones, by their bytes."""
UNREAD = 1000
"""Messages of one peer that wait inside ZeroMQ. Then the peer waits."""
LONGEST_REQUEST = 64 << 20
"""Bytes. ZeroMQ disconnects a client that sends a longer frame."""
NAMES = ("control", "workers")


class Sockets:
    """`control` is for clients, `workers` for workers. A process of another user is refused when it connects.

    ZeroMQ listens at addresses that are no files (Linux's abstract ones), so that nothing removes them, and a `Door` at
    the files that everybody knows.
    """

    def __init__(self, home: Home, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._home, self._context = home, context
        self._inner = {name: f"cockpit-{name}-{uuid.uuid4().hex}" for name in NAMES}
        self._files: dict[str, tuple[Path, os.stat_result]] = {}
        self.control, self.workers = _make_router(context), _make_router(context)
        self.control.sndhwm, self.control.maxmsgsize = UNDELIVERED, LONGEST_REQUEST  # only before it is bound
        for name in NAMES:
            getattr(self, name).bind(f"ipc://@{self._inner[name]}")
        self._door = Door()
        self._open()

    def address(self, name: str) -> str:
        """The address of `control` or `workers`."""
        return f"ipc://{self._files[name][0]}"

    def renew(self) -> None:
        """Make the files anew when one was removed or replaced; whoever is connected stays so. Call it once a second.
        Raises nothing: what does not work now is tried again."""
        self._door.recount()
        with contextlib.suppress(OSError):
            directory = self._files["control"][0].parent
            if directory.lstat().st_mode & 0o077 and directory.lstat().st_uid == os.getuid():
                directory.chmod(0o700)
        if all(_is_same(path, made) for path, made in self._files.values()):
            return
        try:
            self._open()
        except (OSError, ProblemError) as error:
            print(f"the sockets are gone and cannot be made anew: {error}", flush=True)
        else:
            print(f"the sockets in {directory} were gone: made anew, {self.address('control')}", flush=True)

    def close(self) -> None:
        """Send what waits, close the sockets, and remove their files, and the directory if it is empty then."""
        self._context.destroy(linger=500)
        self._door.stop()
        with contextlib.suppress(OSError):
            for path, made in self._files.values():
                if _is_same(path, made):
                    path.unlink()
            path.parent.rmdir()

    def _open(self) -> None:
        directory = sockets.make_directory(self._home)
        for name in NAMES:
            path = directory / name
            self._door.open(name, path, f"\0{self._inner[name]}")
            self._files[name] = (path, path.lstat())


def _make_router(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.router_mandatory = 1  # report an unreachable or overfull peer as an error, rather than drop the message
    socket.rcvhwm = UNREAD
    socket.sndhwm = 100_000
    socket.linger = 500
    socket.backlog = 1024
    socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    return socket


def _is_same(path: Path, made: os.stat_result) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino, found.st_uid) == (made.st_dev, made.st_ino, made.st_uid)
