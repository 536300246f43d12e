"""Expanding a set: requests out, answers in, rows on disk. `expand` is the whole of it, `rehearse` a dry run.

    OUT/requests.jsonl   the journal: what was asked and answered, in the order in which it came (`journal.py`)
    OUT/answers.jsonl    the answers by request: what its prompt showed, and which items of it became rows
    OUT/made.jsonl       the new rows, in the shape of the seeds
    OUT/decisions.jsonl  which of them the user accepted or dropped (`decisions.py`)
    OUT/rows.jsonl       the new rows without the dropped ones: what to train on
    OUT/rejects.jsonl    what was not taken: `file` and `line` are its answer's, `item` its place in the answer
    OUT/report.json

Requests are numbered; which seed rows a request shows follows from its number. Another request leaves only while the good rows of
the answers so far and the rows that requests on their way may bring are fewer than are wanted. So the requests that are sent
are always the shortest beginning that brings enough, however the answers came in, and the results depend on the answers alone.
A second run asks only what has no answer yet; with a larger `samples` it goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from engine.prep.expand import service
from engine.prep.expand.answers import Harvest
from engine.prep.expand.budget import Budget, Usage, worst
from engine.prep.expand.duplicates import Duplicates
from engine.prep.expand.journal import Journal
from engine.prep.expand.results import NAMES, Results
from engine.prep.expand.seeds import Seeds, Sources, read
from engine.prep.options import ExpandOptions, SourceOptions
from engine.protocol.messages import Problem, ProblemError

Progress = Callable[[str, int, int], None]

BARREN = 10
"""Answers in succession without a good row, after which more of the same is not asked."""
FAILURES = 3
"""Requests in succession that came to nothing, after which the service is taken to be out of order."""
FIRST_WAIT, LAST_WAIT = 0.5, 60.0
"""Seconds between tries: doubled each time, a random part taken off so that requests do not come back together."""
PATIENCE = 1800.0
"""Seconds that one request waits for rate limits, in all."""
GRACE = 10.0
"""Seconds that answers on their way have when the work ends early."""
_NOTHING = Usage(0, 0)
_SHOWN = 3
"""Prompts that a dry run shows."""


def expand(
    paths: list[Path], source: SourceOptions, options: ExpandOptions, out: Path, progress: Progress
) -> dict[str, Any]:
    """Make `options.samples` new rows of the seed rows in `paths`, the files of `source`, or as many as the limits allow. Returns what `--json` prints.

    Raises ProblemError (no key, a service that refuses or is out of order …), ValueError for options that cannot be; what was
    answered until then is kept, and the same call goes on from there.
    """
    return make([(source, paths)], options, out, progress).report


class Made(NamedTuple):
    """`report` is what `expand` returns. Of each row in `made.jsonl`, `forms` is the number of the source and shape that its seed had in `kinds`."""

    report: dict[str, Any]
    kinds: list[tuple[int, str]]
    forms: list[int]


def make(sources: Sources, options: ExpandOptions, out: Path, progress: Progress) -> Made:
    """As `expand`, of the rows of several sources."""
    paths = [path for _, listed in sources for path in listed]
    if overwritten := [path for path in paths if path.parent == out.resolve() and path.name in NAMES]:
        raise ValueError(f"{overwritten[0]} holds the seeds and would be replaced: name another folder in --out")
    budget = Budget(options)
    key = service.api_key(options)
    duplicates = Duplicates(options.similarity)
    seeds = read(sources, options, duplicates, lambda done, total: progress("reading", done, total))
    out.mkdir(parents=True, exist_ok=True)
    with closing(Journal(out / "requests.jsonl", _settings(seeds, options))) as journal, Results(out) as results:
        for used in journal.used:
            budget.spend(used)
        harvest = Harvest(seeds, options, duplicates, results)
        conversation = _Conversation(seeds, options, harvest, journal, budget, progress)
        stopped = asyncio.run(conversation.hold(key))
        report = {
            "task": seeds.name,
            "seeds": seeds.count,
            "unused": seeds.unused,
            "rows": harvest.rows,
            "rejected": harvest.rejected,
            "reasons": dict(harvest.reasons.most_common()),
            "requests": harvest.answers,
            "failed": harvest.failed,
            "prompt_tokens": budget.prompt,
            "reply_tokens": budget.reply,
            "cost": Usage(budget.prompt, budget.reply).cost(options.price),
            "stopped": stopped,
        }
        report = results.publish(report)
    numbers = {id(source): number for number, (source, _) in enumerate(sources)}
    kinds = [(numbers[id(form.source)], form.shape) for form in seeds.forms]
    return Made({**report, "rejects": str(out / "rejects.jsonl"), "directory": str(out)}, kinds, harvest.forms)


def rehearse(paths: list[Path], source: SourceOptions, options: ExpandOptions, progress: Progress) -> dict[str, Any]:
    """The first prompts, and what the work costs at most when every answer is good. Sends nothing and needs no key."""
    lack = Budget(options).lack
    seeds = read(
        [(source, paths)], options, Duplicates(options.similarity), lambda done, total: progress("reading", done, total)
    )
    requests = math.ceil(options.samples / options.per_request)
    prompt = reply = fitting = 0
    stopped = ""
    for number in range(requests):
        each = worst(seeds.ask(number, options), options)
        stopped = stopped or lack(Usage(prompt + each.prompt, reply + each.reply))
        prompt, reply = prompt + each.prompt, reply + each.reply
        fitting += not stopped
    return {
        "task": seeds.name,
        "seeds": seeds.count,
        "unused": seeds.unused,
        "requests": requests,
        "tokens_at_most": prompt + reply,
        "cost_at_most": Usage(prompt, reply).cost(options.price),
        "requests_within_limits": fitting,
        "prompts": {str(number + 1): seeds.ask(number, options) for number in range(min(requests, _SHOWN))},
    }


def _settings(seeds: Seeds, options: ExpandOptions) -> dict[str, Any]:
    """What answers depend on: a journal with others is of other work."""
    names = ("model", "temperature", "max_tokens", "per_request", "shots", "seed")
    return {"seeds": seeds.digest, "task": seeds.name, "prompt": seeds.prompt} | {
        name: getattr(options, name) for name in names
    }


class _Conversation:
    """The requests on their way, and what is known of the answers."""

    def __init__(
        self,
        seeds: Seeds,
        options: ExpandOptions,
        harvest: Harvest,
        journal: Journal,
        budget: Budget,
        progress: Progress,
    ) -> None:
        self.seeds, self.options, self.journal, self.budget, self.progress = seeds, options, journal, budget, progress
        self.harvest = harvest
        self.taken = 0
        """The harvest has the answers of all requests before this one."""
        self.asked: dict[int, asyncio.Task[None]] = {}
        self.failures: dict[int, str] = {}
        """They are written down when the service is seen to work again: an outage leaves no gap."""
        self.failed = 0
        """Failures in succession."""
        self.ending: ProblemError | None = None
        self.over = asyncio.Event()
        self.lack = ""

    async def hold(self, key: str) -> str:
        """Ask until there are enough rows; returns why there are not, or nothing. Raises ProblemError."""
        self._harvest()
        if self._wants():
            async with service.Service(self.options, key) as self.service:
                await self._ask_all()
        if self.ending:
            raise self.ending
        # A limit may have left gaps: what was answered behind them is taken, too.
        for number in sorted(number for number in self.journal.answers if number >= self.taken):
            self._take(number)
        return self._barren() or (self.lack if self.harvest.rows < self.options.samples else "")

    async def _ask_all(self) -> None:
        while True:
            while len(self.asked) < self.options.concurrency and self._wants() and self._fits():
                number = self._next()
                self.budget.reserve(self._worst(number))
                self.asked[number] = asyncio.create_task(self._request(number))
            if not self.asked:
                if self.ending or not self.failures:
                    return
                self._write_failures()
            else:
                await asyncio.wait(
                    self.asked.values(), timeout=GRACE if self.ending else None, return_when=asyncio.FIRST_COMPLETED
                )
                done = [number for number, task in self.asked.items() if task.done()]
                if self.ending and not done:
                    return self._give_up()
                for number in done:
                    self.asked.pop(number).result()
            self._harvest()

    def _give_up(self) -> None:
        for task in self.asked.values():
            task.cancel()

    def _harvest(self) -> None:
        while self.taken in self.journal.answers and self._take(self.taken):
            self.taken += 1
        self.progress("expanding", self.harvest.rows, self.options.samples)

    def _take(self, number: int) -> bool:
        """Whether another answer was wanted."""
        wanted = self.harvest.rows < self.options.samples and not self._barren()
        if wanted:
            self.harvest.take(number, self.journal.answers[number])
        return wanted

    def _barren(self) -> str:
        return f"the last {BARREN} answers held no good row" if self.harvest.barren >= BARREN else ""

    def _wants(self) -> bool:
        if self.ending or self._barren():
            return False
        ahead = self.asked.keys() | {number for number in self.journal.answers if number >= self.taken}
        return self.harvest.rows + len(ahead) * self.options.per_request < self.options.samples

    def _fits(self) -> bool:
        """Whether the limits allow another request now. Those on their way may use less than was set aside for them."""
        lack = self.budget.lack(self._worst(self._next()))
        self.lack = "" if self.asked else lack
        return not lack

    def _next(self) -> int:
        """The lowest number without an answer that is not on its way."""
        number = self.taken
        while number in self.journal.answers or number in self.asked or number in self.failures:
            number += 1
        return number

    def _worst(self, number: int) -> Usage:
        return worst(self.seeds.ask(number, self.options), self.options)

    # ── one request ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _request(self, number: int) -> None:
        """Ask until there is an answer, or a reason why there is none. What was set aside for it is free again afterwards."""
        text = self.seeds.ask(number, self.options)
        reserved, random = worst(text, self.options), Random(f"{self.options.seed}:{number}:wait")
        tries = limits = 0
        waited = 0.0
        while True:
            while self.service.wait and not self.ending:
                await self._rest(self.service.wait)
            if self.ending:
                self.budget.settle(reserved, _NOTHING)
                return
            self.journal.sent(number, reserved)
            used, pause, reason = _NOTHING, 0.0, ""
            try:
                reply = await self.service.ask(text)
            except service.Limited as limit:
                limits += 1
                wait = _pause(limits, random) if limit.wait is None else limit.wait * (1 + 0.1 * random.random())
                waited += wait
                reason = "the rate limit does not let up" if waited > PATIENCE else ""
                self._pause_all(wait)
            except service.Trouble as trouble:
                tries += 1
                used = reserved if trouble.billed else _NOTHING
                pause = _pause(tries, random)
                reason = str(trouble) if tries > self.options.retries else ""
            except service.Refused as refused:
                reason = str(refused)
            except ProblemError as error:
                self._end(error)
            else:
                self.journal.answered(number, reply.text, reply.finish, reply.usage or reserved)
                self.budget.settle(reserved, reply.usage or reserved)
                self.failed = 0
                self._write_failures()
                return
            self.journal.lost(number, used)
            self.budget.settle(reserved, used)
            if reason:
                self._fail(number, reason)
            if reason or self.ending or self.budget.lack(reserved):
                return  # without room for another try it is as if it had not been asked: there may be room later
            self.budget.reserve(reserved)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)

    def _pause_all(self, pause: float) -> None:
        try:
            self.service.hold(pause)
        except ProblemError as error:
            self._end(error)

    def _end(self, error: ProblemError) -> None:
        self.ending = self.ending or error
        self.over.set()

    def _fail(self, number: int, reason: str) -> None:
        self.failures[number] = reason
        self.failed += 1
        if self.failed >= FAILURES:
            self._end(
                ProblemError(
                    Problem(
                        title=f"{self.options.base_url} gave no answer to {self.failed} requests in succession",
                        cause=reason,
                        hint="what was made is kept; the same command goes on from here",
                    )
                )
            )

    def _write_failures(self) -> None:
        """Called when the service works: these requests it will not answer."""
        for number, reason in sorted(self.failures.items()):
            self.journal.failed(number, reason)
        self.failures.clear()


def _pause(times: int, random: Random) -> float:
    return min(LAST_WAIT, FIRST_WAIT * 2.0 ** (times - 1)) * (0.5 + random.random() / 2)
