"""One request after another's rules: tried until it is answered or will not be, within the limits, each try on disk.

The caller numbers its requests and decides which leave; here is what happens to one, and what its failure means for all.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

from engine.llm_api import client
from engine.llm_api.budget import Budget, Usage, worst_case
from engine.llm_api.journal import Journal
from engine.options.data import ServiceOptions
from engine.protocol.messages import Problem, ProblemError

FAILURES = 3
"""Requests in succession that came to nothing, after which the service is taken to be out of order."""
FIRST_WAIT, LAST_WAIT = 0.5, 60.0
"""Seconds between tries: doubled each time, a random part taken off so that requests do not come back together."""
PATIENCE = 1800.0
"""Seconds that one request waits for rate limits, in all."""
_NOTHING = Usage(0, 0)


class Requester:
    """The requests of one piece of work. `ending` is why it must end, once it must."""

    def __init__(self, options: ServiceOptions, journal: Journal, budget: Budget, seed: int) -> None:
        self._options, self._journal, self._budget, self._seed = options, journal, budget, seed
        self.failures: dict[int, str] = {}
        """They are written down when the service is seen to work again: an outage leaves no gap."""
        self.fatal_error: ProblemError | None = None
        self._failed = 0
        """Failures in succession."""
        self._over = asyncio.Event()

    async def ask(self, connection: client.Service, number: int, text: str) -> None:
        """Ask until there is an answer in the journal, or a reason why there is none. What was set aside for it is free again afterwards."""
        reserved, random = worst_case(text, self._options), Random(f"{self._seed}:{number}:wait")
        tries = limits = 0
        waited = 0.0
        while True:
            while connection.wait and not self.fatal_error:
                await self._rest(connection.wait)
            if self.fatal_error:
                self._budget.settle(reserved, _NOTHING)
                return
            self._journal.record_sent(number, reserved)
            used, pause, reason = _NOTHING, 0.0, ""
            try:
                reply = await connection.ask(text)
            except client.RateLimitError as limit:
                limits += 1
                wait = _backoff(limits, random) if limit.wait is None else limit.wait * (1 + 0.1 * random.random())
                waited += wait
                reason = "the rate limit does not let up" if waited > PATIENCE else ""
                self._pause_all(connection, wait)
            except client.TransientError as trouble:
                tries += 1
                used = reserved if trouble.billed else _NOTHING
                pause = _backoff(tries, random)
                reason = str(trouble) if tries > self._options.retries else ""
            except client.RefusedError as refused:
                reason = str(refused)
            except ProblemError as error:
                self._end(error)
            else:
                self._journal.record_answer(number, reply.text, reply.finish, reply.usage or reserved)
                self._budget.settle(reserved, reply.usage or reserved)
                self._failed = 0
                self.write_failures()
                return
            self._journal.record_lost(number, used)
            self._budget.settle(reserved, used)
            if reason:
                self._fail(number, reason)
            if reason or self.fatal_error or self._budget.shortage(reserved):
                return  # without room for another try it is as if it had not been asked: there may be room later
            self._budget.reserve(reserved)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    def _pause_all(self, connection: client.Service, pause: float) -> None:
        try:
            connection.pause(pause)
        except ProblemError as error:
            self._end(error)

    def _end(self, error: ProblemError) -> None:
        self.fatal_error = self.fatal_error or error
        self._over.set()

    def _fail(self, number: int, reason: str) -> None:
        self.failures[number] = reason
        self._failed += 1
        if self._failed >= FAILURES:
            self._end(
                ProblemError(
                    Problem(
                        title=f"{self._options.base_url} gave no answer to {self._failed} requests in succession",
                        cause=reason,
                        hint="what was made is kept; the same command goes on from here",
                    )
                )
            )

    def write_failures(self) -> None:
        """Called when the service works: these requests it will not answer."""
        for number, reason in sorted(self.failures.items()):
            self._journal.record_failure(number, reason)
        self.failures.clear()


def _backoff(times: int, random: Random) -> float:
    return min(LAST_WAIT, FIRST_WAIT * 2.0 ** (times - 1)) * (0.5 + random.random() / 2)
