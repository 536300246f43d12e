"""From the device's thread to clients: text is merged until the client has taken what came before.

So a slow client gets fewer and larger pieces and delays nobody, and what is buffered for it is at most its reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.inference.token_scores import ScoredToken
from engine.serving.jobs import Job, JobEnd, JobEvent, JobText


@dataclass
class ChoiceUpdate:
    """Text and thinking to append to one choice, and its end, if it has ended."""

    index: int
    text: str = ""
    thinking: str = ""
    ended: JobEnd | None = None
    scored: list[ScoredToken] = field(default_factory=list)

    def add(self, later: ChoiceUpdate) -> None:
        self.text += later.text
        self.thinking += later.thinking
        self.scored += later.scored
        self.ended = later.ended


class ClientGone(Exception):
    """The client has disconnected, or no longer reads."""


@dataclass(eq=False)
class ReplyStream:
    """The choices of one request. Used in the event loop's thread alone."""

    jobs: list[Job]
    open: int = 0
    """The number of choices whose end has not been taken."""
    _updates: dict[int, ChoiceUpdate] = field(default_factory=dict)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _gone: bool = False

    def __post_init__(self) -> None:
        self.open = len(self.jobs)

    def take(self, index: int, event: JobText | JobEnd) -> None:
        update = self._updates.setdefault(index, ChoiceUpdate(index))
        if isinstance(event, JobEnd):
            update.ended = event
        else:
            update.text += event.text
            update.thinking += event.thinking
            update.scored += event.scored
        self._arrived.set()

    def hang_up(self) -> None:
        """The client has disconnected: `next` raises ClientGone."""
        self._gone = True
        self._arrived.set()

    async def next(self) -> list[ChoiceUpdate]:
        """The updates since the last call; waits for some. Not to be called when nothing is open. Raises ClientGone."""
        await self._arrived.wait()
        self._arrived.clear()
        if self._gone:
            raise ClientGone
        updates, self._updates = [*self._updates.values()], {}
        self.open -= sum(each.ended is not None for each in updates)
        return updates


class EventRouter:
    """Passes the scheduler's events to the requests that wait for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Job, tuple[ReplyStream, int]] = {}

    def expect(self, jobs: Sequence[Job]) -> ReplyStream:
        """Register jobs, before they are submitted."""
        stream = ReplyStream(list(jobs))
        self._waiting.update({job: (stream, index) for index, job in enumerate(jobs)})
        return stream

    def forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._waiting.pop(job, None)

    def deliver(self, events: list[JobEvent]) -> None:
        """Called from the device's thread."""
        try:
            self._loop.call_soon_threadsafe(self._hand_out, events)
        except RuntimeError:
            pass  # the loop has ended, and with it all requests

    def _hand_out(self, events: list[JobEvent]) -> None:
        for job, event in events:
            if job in self._waiting:
                stream, index = self._waiting[job]
                stream.take(index, event)
                if isinstance(event, JobEnd):
                    del self._waiting[job]
