"""Lets clients and workers in, as many as files may be opened for.

ZeroMQ ends its process when it cannot accept a connection because too many files are open. So it accepts at an address
that nobody else knows, from this thread alone, which accepts at the sockets' files, knows how many files are open, and
turns away whom there is no room for and whoever is another user. It passes on the bytes of those that it has let in.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.protocol.sockets import FULL, read_peer_uid

FILES = 3
"""Files that one who was let in takes: its connection here, and both ends of the one to ZeroMQ."""
RESERVE = 64
"""Files that are kept for everything else, or a quarter of all where that is less."""
CHUNK = 1 << 16
"""Bytes that are passed on at a time. Of one connection no more is held."""
BACKLOG = 128


class Door:
    """A thread that serves listeners. `open` and `stop` may be called from another one."""

    def __init__(self) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = limit if limit != resource.RLIM_INFINITY else sys.maxsize
        self._reserve = min(self._limit // 4, RESERVE)
        self._inside = 0
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[str, socket.socket] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._take_calls)
        self._others = self._count_open()
        self._thread = threading.Thread(target=self._serve, name="door", daemon=True)
        self._thread.start()

    def open(self, name: str, path: Path, inner: str) -> None:
        """Listen at `path` for the abstract address `inner`, in place of an earlier listener of this name. Who came by
        that one stays. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self._call(lambda: self._replace(name, listener, inner))

    def recount(self) -> None:
        """Count again how many files others than those here hold. Call it once a second."""
        self._others = self._count_open() - FILES * self._inside

    def stop(self, seconds: float = 1.0) -> None:
        """End when everything that ZeroMQ has sent was passed on, within `seconds`. Close ZeroMQ's sockets before."""
        self._call(self._shut)
        self._thread.join(seconds)

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, action: Callable[[], None]) -> None:
        self._calls.append(action)
        os.write(self._wake_write, b"!")

    def _take_calls(self, _: int) -> None:
        os.read(self._wake_read, 4096)
        while self._calls:
            self._calls.popleft()()

    def _serve(self) -> None:
        while not (self._stopping and not self._inside):
            for key, events in self._selector.select():
                key.data(events)

    def _replace(self, name: str, listener: socket.socket, inner: str) -> None:
        if earlier := self._listeners.pop(name, None):
            self._selector.unregister(earlier)
            earlier.close()
        self._listeners[name] = listener
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(listener, inner))

    def _shut(self) -> None:
        self._stopping = True
        for listener in self._listeners.values():
            self._selector.unregister(listener)
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket, inner: str) -> None:
        try:
            outside = listener.accept()[0]
        except OSError:
            return  # it has gone again
        outside.setblocking(False)
        if read_peer_uid(outside) not in (None, os.getuid()):
            outside.close()
            return
        if self._others + FILES * (self._inside + 1) + self._reserve > self._limit:
            with contextlib.suppress(OSError):
                outside.send(FULL)
            outside.close()
            return
        inside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inside.connect(inner)
        except OSError:  # ZeroMQ is behind with accepting, or the engine ends
            inside.close()
            outside.close()
            return
        self._inside += 1
        pair = (_Side(self._selector, outside), _Side(self._selector, inside))
        for side, other in (pair, pair[::-1]):
            side.begin(other, self._leave)

    def _leave(self) -> None:
        self._inside -= 1

    def _count_open(self) -> int:
        try:
            return sum(1 for _ in Path("/dev/fd").iterdir())
        except OSError:
            return 0


class _Side:
    """One end of a connection: what is read here is written to the other one, which is not read from until then."""

    def __init__(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        self._selector, self._socket = selector, connection
        self._pending = b""
        self._ended = False
        self._events = 0
        self._other: Any = None
        self._left: Callable[[], None] = lambda: None

    def begin(self, other: _Side, left: Callable[[], None]) -> None:
        self._other, self._left = other, left
        self._watch(selectors.EVENT_READ)

    def _handle(self, events: int) -> None:
        if self._socket.fileno() < 0:
            return  # closed by what happened to the other side in the same turn
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ and self._events & selectors.EVENT_READ:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._other.send(data)
            if self._other._pending:
                self._watch(self._events & ~selectors.EVENT_READ)
            return
        self._ended = True
        self._watch(self._events & ~selectors.EVENT_READ)
        if not self._other._pending:
            self._close()

    def send(self, data: bytes) -> None:
        self._pending = data
        self._write()

    def _write(self) -> None:
        try:
            self._pending = self._pending[self._socket.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if self._pending:
            self._watch(self._events | selectors.EVENT_WRITE)
            return
        self._watch(self._events & ~selectors.EVENT_WRITE)
        if self._other._ended:
            self._close()
        else:
            self._other._watch(self._other._events | selectors.EVENT_READ)

    def _watch(self, events: int) -> None:
        if self._socket.fileno() < 0 or events == self._events:
            return
        if not self._events:
            self._selector.register(self._socket, events, self._handle)
        elif not events:
            self._selector.unregister(self._socket)
        else:
            self._selector.modify(self._socket, events, self._handle)
        self._events = events

    def _close(self) -> None:
        """Close both sides."""
        if self._socket.fileno() < 0:
            return
        for side in (self, self._other):
            side._watch(0)
            side._socket.close()
        self._left()
