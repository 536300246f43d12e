"""From the device's thread to one client: what became certain meanwhile waits, merged, until the client has taken what came before.

So a client that reads slowly gets fewer and larger pieces, its reply is finished all the same, and what waits for it is bounded by
the length of its reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.serving.scheduler import Ended, Job, Said, Told


@dataclass
class News:
    """Of one choice: text and thinking to append, and how it ended, if it has."""

    index: int
    text: str = ""
    thinking: str = ""
    ended: Ended | None = None

    def add(self, later: News) -> None:
        self.text += later.text
        self.thinking += later.thinking
        self.ended = later.ended


class Gone(Exception):
    """The client has hung up, or reads nothing any more."""


@dataclass(eq=False)
class Replying:
    """The choices of one request. To be used in the loop's thread alone."""

    jobs: list[Job]
    open: int = 0
    """Choices that have not ended, or whose end has not been taken."""
    _news: dict[int, News] = field(default_factory=dict)
    _come: asyncio.Event = field(default_factory=asyncio.Event)
    _gone: bool = False

    def __post_init__(self) -> None:
        self.open = len(self.jobs)

    def take(self, index: int, event: Said | Ended) -> None:
        news = self._news.setdefault(index, News(index))
        if isinstance(event, Ended):
            news.ended = event
        else:
            news.text += event.text
            news.thinking += event.thinking
        self._come.set()

    def hang_up(self) -> None:
        """Nobody is there any more: `next` raises Gone."""
        self._gone = True
        self._come.set()

    async def next(self) -> list[News]:
        """What has come since the last call; waits for something to come. Not to be called when nothing is open. Raises Gone."""
        await self._come.wait()
        self._come.clear()
        if self._gone:
            raise Gone
        news, self._news = [*self._news.values()], {}
        self.open -= sum(each.ended is not None for each in news)
        return news


class Post:
    """Hands what the scheduler delivers to those who wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Job, tuple[Replying, int]] = {}

    def expect(self, jobs: Sequence[Job]) -> Replying:
        """Before they are submitted."""
        replying = Replying(list(jobs))
        self._waiting.update({job: (replying, index) for index, job in enumerate(jobs)})
        return replying

    def forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._waiting.pop(job, None)

    def deliver(self, told: list[Told]) -> None:
        """From the device's thread."""
        try:
            self._loop.call_soon_threadsafe(self._hand_out, told)
        except RuntimeError:
            pass  # the loop has ended: nobody listens any more

    def _hand_out(self, told: list[Told]) -> None:
        for job, event in told:
            if job in self._waiting:
                replying, index = self._waiting[job]
                replying.take(index, event)
                if isinstance(event, Ended):
                    del self._waiting[job]
