"""Expands a data set: sends requests, takes rows from the answers, and writes them. `dry_run` only shows what would be
sent.

    OUT/requests.jsonl   the journal of requests and answers, in order of arrival (`llm_api.journal`)
    OUT/answers.jsonl    the answers in order of their requests: the seeds in the prompt, and which items became rows
    OUT/made.jsonl       the new rows, in the format of the seeds
    OUT/decisions.jsonl  which of them the user has accepted or dropped (`decisions`)
    OUT/rows.jsonl       the new rows without the dropped ones: what to train on
    OUT/rejects.jsonl    the items that were rejected: `file` and `line` of the answer, `item` is the place in it
    OUT/report.json

Requests are numbered, and a request's number determines which seed rows its prompt shows. Another request is sent only
while the good rows so far, plus the rows that pending requests may bring, are fewer than `samples`. So the requests
sent are always the shortest sequence that yields enough rows, whatever the order of arrival, and the result depends on
the answers alone. A second run sends only requests without an answer; with a larger `samples` it continues.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from engine.llm_api import client
from engine.llm_api.budget import Budget, Usage, worst_case
from engine.llm_api.journal import Journal
from engine.llm_api.retries import Requester
from engine.options.data import ExpandOptions, SourceOptions
from engine.prep.expand.duplicates import Duplicates
from engine.prep.expand.parse_replies import ReplyParser
from engine.prep.expand.results import NAMES, Results
from engine.prep.expand.seeds import Seeds, Sources, read_seeds

Progress = Callable[[str, int, int], None]

MOST_FRUITLESS = 10
"""Consecutive answers without a good row after which no more requests are sent."""
GRACE = 10.0
"""Seconds to wait for pending answers when the work ends early."""
_SHOWN = 3
"""Prompts that a dry run shows."""


def expand(
    paths: list[Path], source: SourceOptions, options: ExpandOptions, out: Path, progress: Progress
) -> dict[str, Any]:
    """Make `options.samples` new rows from the seed rows in `paths`, the files of `source`, or as many as the limits
    allow.

    Returns the document that `--json` prints. Raises ProblemError (no key, a service that refuses or fails …) and
    ValueError for invalid options. The answers received until then are kept, and the same call continues from there.
    """
    return expand_sources([(source, paths)], options, out, progress).report


class Expansion(NamedTuple):
    """`report` is the result of `expand`. `formats` lists (number of the source, format); `forms` has for each row in
    `made.jsonl` the index in `formats` of its seed."""

    report: dict[str, Any]
    formats: list[tuple[int, str]]
    forms: list[int]


def expand_sources(sources: Sources, options: ExpandOptions, out: Path, progress: Progress) -> Expansion:
    """As `expand`, with seed rows from several sources."""
    paths = [path for _, listed in sources for path in listed]
    if overwritten := [path for path in paths if path.parent == out.resolve() and path.name in NAMES]:
        raise ValueError(f"{overwritten[0]} holds the seeds and would be replaced: name another folder in --out")
    if not (out / "requests.jsonl").exists() and (foreign := [name for name in NAMES if (out / name).exists()]):
        raise ValueError(f"{out / foreign[0]} exists and is not of an expansion: name another folder in --out")
    budget = Budget(options)
    key = client.api_key(options)
    duplicates = Duplicates(options.similarity)
    seeds = read_seeds(sources, options, duplicates, lambda done, total: progress("reading", done, total))
    out.mkdir(parents=True, exist_ok=True)
    with closing(Journal(out / "requests.jsonl", _settings(seeds, options))) as journal, Results(out) as results:
        for used in journal.used:
            budget.spend(used)
        parser = ReplyParser(seeds, options, duplicates, results)
        loop = _RequestLoop(seeds, options, parser, journal, budget, progress)
        stopped = asyncio.run(loop.run(key))
        limited = bool(stopped) and parser.fruitless < MOST_FRUITLESS
        report = {
            "task": seeds.name,
            "seeds": seeds.count,
            "unused": seeds.unused,
            "rows": parser.rows,
            "rejected": parser.rejected,
            "reasons": dict(parser.reasons.most_common()),
            "requests": parser.answers,
            "failed": parser.failed,
            "prompt_tokens": budget.prompt,
            "reply_tokens": budget.reply,
            "cost": Usage(budget.prompt, budget.reply).cost(options.price),
            "stopped": stopped,
            "limited": limited,
            **({"warning": warning} if (warning := client.describe_plain_http(options)) else {}),
        }
        report = results.publish(report)
    numbers = {id(source): number for number, (source, _) in enumerate(sources)}
    formats = [(numbers[id(form.source)], form.format) for form in seeds.forms]
    return Expansion({**report, "rejects": str(out / "rejects.jsonl"), "directory": str(out)}, formats, parser.forms)


def dry_run(paths: list[Path], source: SourceOptions, options: ExpandOptions, progress: Progress) -> dict[str, Any]:
    """The first prompts, and the maximum cost if every answer is good. Sends nothing and needs no key."""
    shortage = Budget(options).shortage
    seeds = read_seeds(
        [(source, paths)], options, Duplicates(options.similarity), lambda done, total: progress("reading", done, total)
    )
    requests = math.ceil(options.samples / options.per_request)
    prompt = reply = fitting = 0
    stopped = ""
    for number in range(requests):
        each = worst_case(seeds.build_prompt(number, options), options)
        stopped = stopped or shortage(Usage(prompt + each.prompt, reply + each.reply))
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
        "prompts": {str(number + 1): seeds.build_prompt(number, options) for number in range(min(requests, _SHOWN))},
    }


def _settings(seeds: Seeds, options: ExpandOptions) -> dict[str, Any]:
    """The settings that answers depend on; a journal with other settings belongs to other work."""
    names = ("model", "temperature", "max_tokens", "per_request", "shots", "seed")
    return {"seeds": seeds.digest, "task": seeds.name, "prompt": seeds.prompt} | {
        name: getattr(options, name) for name in names
    }


class _RequestLoop:
    """Sends requests concurrently and processes the answers in the order of the requests."""

    def __init__(
        self,
        seeds: Seeds,
        options: ExpandOptions,
        parser: ReplyParser,
        journal: Journal,
        budget: Budget,
        progress: Progress,
    ) -> None:
        self.seeds, self.options, self.journal, self.budget, self.progress = seeds, options, journal, budget, progress
        self.parser = parser
        self.processed = 0
        """The answers of all requests before this number are processed."""
        self.pending: dict[int, asyncio.Task[None]] = {}
        self.requester = Requester(options, journal, budget, options.seed)
        self.shortage = ""

    async def run(self, key: str) -> str:
        """Send requests until there are enough rows. Returns why there are not enough, or an empty string. Raises
        ProblemError."""
        self._process_replies()
        if self._needs_more():
            async with client.Service(self.options, key) as connection:
                await self._ask_all(connection)
        if self.requester.fatal_error:
            raise self.requester.fatal_error
        # A limit may have left gaps: the answers behind them are processed too.
        for number in sorted(number for number in self.journal.answers if number >= self.processed):
            self._process(number)
        return self._explain_fruitless() or (self.shortage if self.parser.rows < self.options.samples else "")

    async def _ask_all(self, connection: client.Service) -> None:
        while True:
            while len(self.pending) < self.options.concurrency and self._needs_more() and self._has_budget():
                number = self._next_number()
                self.budget.reserve(self._worst(number))
                self.pending[number] = asyncio.create_task(
                    self.requester.ask(connection, number, self.seeds.build_prompt(number, self.options))
                )
            if not self.pending:
                if self.requester.fatal_error or not self.requester.failures:
                    return
                self.requester.write_failures()
            else:
                await asyncio.wait(
                    self.pending.values(),
                    timeout=GRACE if self.requester.fatal_error else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                done = [number for number, task in self.pending.items() if task.done()]
                if self.requester.fatal_error and not done:
                    return self._give_up()
                for number in done:
                    self.pending.pop(number).result()
            self._process_replies()

    def _give_up(self) -> None:
        for task in self.pending.values():
            task.cancel()

    def _process_replies(self) -> None:
        while self.processed in self.journal.answers and self._process(self.processed):
            self.processed += 1
        self.progress("expanding", self.parser.rows, self.options.samples)

    def _process(self, number: int) -> bool:
        """Process an answer unless there are enough rows already; returns whether it was processed."""
        wanted = self.parser.rows < self.options.samples and not self._explain_fruitless()
        if wanted:
            self.parser.take(number, self.journal.answers[number])
        return wanted

    def _explain_fruitless(self) -> str:
        return f"the last {MOST_FRUITLESS} answers held no good row" if self.parser.fruitless >= MOST_FRUITLESS else ""

    def _needs_more(self) -> bool:
        if self.requester.fatal_error or self._explain_fruitless():
            return False
        ahead = self.pending.keys() | {number for number in self.journal.answers if number >= self.processed}
        return self.parser.rows + len(ahead) * self.options.per_request < self.options.samples

    def _has_budget(self) -> bool:
        """Whether the limits allow another request now. Pending requests may use less than was reserved for them."""
        shortage = self.budget.shortage(self._worst(self._next_number()))
        self.shortage = "" if self.pending else shortage
        return not shortage

    def _next_number(self) -> int:
        """The lowest number of a request that is neither answered nor pending."""
        number = self.processed
        while number in self.journal.answers or number in self.pending or number in self.requester.failures:
            number += 1
        return number

    def _worst(self, number: int) -> Usage:
        return worst_case(self.seeds.build_prompt(number, self.options), self.options)
