"""Connections that wait for their client: they have a time-out, and the oldest give way to new ones.

uvicorn has neither: so many connections that send half a request, or nothing, would shut the server out for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0
"""Seconds within which a request's headers must arrive, from the connection or from their first byte."""
WAITING = 256
"""Connections that may wait for their clients: without a request, or with one whose body is not complete."""
WAITING_EACH = 128
"""How many of them one address may have."""


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol with these bounds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def awaits_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def awaits_client(self) -> bool:
        """Whether nothing of ours runs for this connection until its client sends more."""
        return self.awaits_headers or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        self._start_timer()
        _make_room(each for each in self.connections if isinstance(each, GuardedProtocol))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.awaits_headers:
            self._start_timer()
        else:
            self._stop_timer()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection at once. Whoever is at its other end has nothing to read."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADERS, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self.awaits_headers:
            self.drop()


def _make_room(connections: Iterable[GuardedProtocol]) -> None:
    """Drop the connections that have waited longest, beyond the number that may wait, in all and of each address."""
    waiting = sorted((each for each in connections if each.awaits_client), key=lambda each: each.waiting_since)
    excess = len(waiting) - WAITING
    by_address: dict[str, int] = {}
    for each in reversed(waiting):
        address = each.client[0] if each.client else ""
        by_address[address] = by_address.get(address, 0) + 1
        if by_address[address] > WAITING_EACH:
            each.drop()
            excess -= 1
    for each in waiting:
        if excess <= 0:
            return
        if not each.transport.is_closing():
            each.drop()
            excess -= 1
