"""Repeats a request until it is answered or given up, within the limits, and journals each attempt.

The caller numbers its requests and decides which ones to send. A `Requester` handles each of them, and stops all of
them if the service is out of order.
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
"""Consecutive failed requests after which the service is considered out of order."""
FIRST_WAIT, LAST_WAIT = 0.5, 60.0
"""Seconds between attempts: doubled each time, less a random part so that requests do not return all at once."""
PATIENCE = 1800.0
"""Seconds in total that a request waits for rate limits."""
_NOTHING = Usage(0, 0)


class Requester:
    """Sends the requests of one job. `fatal_error` is set when the whole job must end."""

    def __init__(self, options: ServiceOptions, journal: Journal, budget: Budget, seed: int) -> None:
        self._options, self._journal, self._budget, self._seed = options, journal, budget, seed
        self.failures: dict[int, str] = {}
        """Request -> reason. Journaled only once the service works again, so that an outage leaves no gap in the
        answers."""
        self.fatal_error: ProblemError | None = None
        self._failed = 0
        """Consecutive failures."""
        self._over = asyncio.Event()

    async def ask(self, connection: client.Service, number: int, text: str) -> None:
        """Send a request until the journal has its answer, or the reason why there is none. Its reservation in the
        budget is released."""
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
                reason = "the rate limit does not end" if waited > PATIENCE else ""
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
                return  # without budget for another attempt the request counts as not sent: there may be budget later
            self._budget.reserve(reserved)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Wait, but not longer than until the job ends."""
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
                        code="expand.no_answer",
                        title=f"{self._options.base_url} gave no answer to {self._failed} requests in succession",
                        cause=reason,
                        hint="what was made is kept; the same command goes on from here",
                    )
                )
            )

    def write_failures(self) -> None:
        """Journal the failures, now that the service works: it will not answer these requests."""
        for number, reason in sorted(self.failures.items()):
            self._journal.record_failure(number, reason)
        self.failures.clear()


def _backoff(times: int, random: Random) -> float:
    return min(LAST_WAIT, FIRST_WAIT * 2.0 ** (times - 1)) * (0.5 + random.random() / 2)
