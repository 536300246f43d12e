"""The asyncio counterpart of `client.Client`, for the app. A module of its own, since importing `zmq.asyncio` takes
time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import zmq
import zmq.asyncio

from engine.protocol import wire
from engine.protocol.client import (
    EVENT_TIMEOUT,
    LOOK,
    LOST,
    Tracker,
    decode_known,
    find_reach,
    pack_request,
    unpack_reply,
)
from engine.protocol.home import Home
from engine.protocol.messages import Closing, Event, Message, Problem, ProblemError, Reply
from engine.protocol.reach import Reach, is_connected, timeout_error, unreachable_error


class AsyncClient:
    """Connect with `await AsyncClient.connect(home)`; `close` when done."""

    def __init__(self, reach: Reach, connection: wire.Connection, socket: zmq.Socket[bytes]) -> None:
        self._reach = reach
        self.warning: Problem | None = None
        """As `Client.warning`."""
        self._closed = False
        self._connecting = asyncio.Lock()
        self._connection = connection
        self._plain = socket
        self._socket = zmq.asyncio.Socket.from_socket(socket)
        self._replies: dict[str, asyncio.Future[Reply]] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(self._socket), name="engine-reader")

    @classmethod
    async def connect(cls, engine: Home | Reach) -> AsyncClient:
        """Start the engine if none runs, without blocking the loop. Raises ProblemError when it does not start."""
        reach = find_reach(engine)
        warning = await asyncio.to_thread(reach.start)
        client = cls(reach, *await asyncio.to_thread(reach.open))
        client.warning = warning
        return client

    async def close(self) -> None:
        self._closed = True
        self._reader.cancel()
        self._close_socket()

    def _close_socket(self) -> None:
        """Close both objects of the one socket. The plain one would not learn of it, and close it again when it is
        collected: by then a new socket may be at the same address in memory, and that would be closed."""
        self._socket.close(linger=0)
        self._plain.close(linger=0)

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        """As `Client.request`."""
        await self._reconnect()
        connection, socket = self._connection, self._socket
        request_id, payload = pack_request(operation, message)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[request_id] = future
        deadline = time.monotonic() + timeout
        try:
            await asyncio.wait_for(socket.send(payload), timeout)
            while not (await asyncio.wait({future}, timeout=min(LOOK, max(0.0, deadline - time.monotonic()))))[0]:
                if time.monotonic() > deadline:
                    raise timeout_error(operation, timeout)
                self._reach.check(connection)
                if socket.closed or not is_connected(socket):
                    raise unreachable_error(f"its process {connection.pid} has closed the connection")
        except TimeoutError:
            raise timeout_error(operation, timeout) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if socket.closed and task is not None and not task.cancelling():
                # Closing the socket cancelled what it still had to send, and nobody this request.
                raise unreachable_error("the connection was closed before the request was sent") from None
            raise
        finally:
            self._replies.pop(request_id, None)
        return unpack_reply(operation, future.result())

    async def _reconnect(self) -> None:
        """Connect to the next supervisor when the one before has gone. Raises ProblemError."""
        async with self._connecting:
            if self._closed:
                raise unreachable_error("this client is closed")
            if is_connected(self._socket):
                return
            self._reader.cancel()
            self._connection, socket = await asyncio.to_thread(self._reach.open)
            if self._closed:
                socket.close(linger=0)
                raise unreachable_error("this client is closed")
            self._close_socket()
            self._plain, self._socket = socket, zmq.asyncio.Socket.from_socket(socket)
            self._reader = asyncio.create_task(self._read(self._socket), name="engine-reader")

    async def follow(self) -> AsyncIterator[Any]:
        """As `Client.follow`, but without the None while nothing happens."""
        tracker = Tracker()
        while True:
            try:
                snapshot = await self.request("attach", timeout=EVENT_TIMEOUT)
            except ProblemError as error:
                if self._closed or error.problem.code not in LOST:
                    raise
                await asyncio.to_thread(self._reach.start)
                continue
            tracker.start_at(snapshot)
            yield snapshot
            async for body in self._read_events(tracker):
                yield body

    async def _read_events(self, tracker: Tracker) -> AsyncIterator[Any]:
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), EVENT_TIMEOUT)
            except TimeoutError:
                return
            follows = tracker.accept(event)
            if follows is False:
                return
            if follows:
                body = decode_known(event)
                if body is not None:
                    yield body
                if isinstance(body, Closing):
                    return

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            kind, payload = await socket.recv_multipart()
            if kind == wire.REPLY:
                reply = wire.decode(payload, Reply)
                future = self._replies.get(reply.id)
                if future and not future.done():
                    future.set_result(reply)
            else:
                self._events.put_nowait(wire.decode(payload, Event))
