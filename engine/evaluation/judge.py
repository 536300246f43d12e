"""Replies judged by a model behind an OpenAI-compatible service, point by point of a rubric.

The asking is that of `engine.prep.expand`: its retries, its rate limits, its budget, its journal. Nothing is asked or paid for
twice: a second call asks for what has no answer yet.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from engine.evaluation.metrics.words import script
from engine.llm_api import client
from engine.llm_api.budget import Budget, Usage, worst_case
from engine.llm_api.journal import Journal
from engine.llm_api.retries import Requester
from engine.options.evaluation import JudgeOptions

MOST = 5
"""Points."""
_PLACE = re.compile(r"\{(question|reply|reference|rubric)\}")
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
PROMPTS = {
    "en": """You judge the reply to a question, strictly and by these criteria alone:
{rubric}

Question:
{question}

Reply:
{reply}

Give each criterion 1 to 5 points; 5 is for a reply that does all that is said of it, 1 for one that does none of it.
Answer with a JSON object of the criteria's names and their points, and with nothing else.""",
    "zh": """你要评判对一个问题的回答。请严格评判，并且只依据以下标准：
{rubric}

问题：
{question}

回答：
{reply}

每项标准给 1 到 5 分：完全做到得 5 分，完全没有做到得 1 分。
只输出一个 JSON 对象，键为标准的名称，值为分数，不要输出其他内容。""",
}


class Case(NamedTuple):
    row: int
    question: str
    reply: str
    reference: str | None


class Verdicts(NamedTuple):
    """`points` by row; None where the judge's answer cannot be read, or there is none. Rows that a limit has left out are missing, and
    `stopped` says why."""

    points: dict[int, dict[str, int] | None]
    usage: Usage
    cost: float
    stopped: str


def judge(
    cases: Sequence[Case], options: JudgeOptions, journal: Path, progress: Callable[[int, int], None]
) -> Verdicts:
    """Raises ProblemError: no key, a service that refuses or is out of order; ValueError for options that cannot be, and for a journal
    that was begun with other ones. What was answered until then is kept."""
    budget = Budget(options)
    key = client.api_key(options)
    settings = {name: getattr(options, name) for name in ("model", "rubric", "prompt", "temperature", "max_tokens")}
    with closing(Journal(journal, settings)) as asked:
        for used in asked.used:
            budget.spend(used)
        stopped = asyncio.run(_ask_all(cases, options, key, asked, budget, progress))
        points = {
            case.row: read(asked.answers[case.row].reply, options.rubric) for case in cases if case.row in asked.answers
        }
    usage = budget.used
    return Verdicts(points, usage, usage.cost(options.price), stopped)


async def _ask_all(
    cases: Sequence[Case],
    options: JudgeOptions,
    key: str,
    journal: Journal,
    budget: Budget,
    progress: Callable[[int, int], None],
) -> str:
    """Why some were not asked, or nothing."""
    waiting = [case for case in cases if case.row not in journal.answers]
    if not waiting:
        return ""
    asking, going, stopped = Requester(options, journal, budget, seed=0), set[asyncio.Task[None]](), ""
    async with client.Service(options, key) as connection:
        while going or (waiting and not asking.fatal_error and not stopped):
            while waiting and len(going) < options.concurrency and not asking.fatal_error:
                text = prompt(waiting[0], options)
                lack = budget.shortage(worst_case(text, options))
                if lack:
                    stopped = "" if going else lack  # those on their way may use less than was set aside for them
                    break
                budget.reserve(worst_case(text, options))
                going.add(asyncio.create_task(asking.ask(connection, waiting.pop(0).row, text)))
            if going:
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            try:
                progress(sum(case.row in journal.answers for case in cases), len(cases))
            except BaseException:
                for task in going:
                    task.cancel()
                raise
    if asking.fatal_error:
        raise asking.fatal_error
    asking.write_failures()
    return stopped


def prompt(case: Case, options: JudgeOptions) -> str:
    """What the judge is asked. A text that itself holds `{reply}` is not filled in a second time."""
    rubric = "\n".join(f"- {name}: {meaning}" for name, meaning in options.rubric.items())
    parts = {"question": case.question, "reply": case.reply, "reference": case.reference or "", "rubric": rubric}
    chosen = options.prompt or PROMPTS["zh" if script(case.question) == "zh" else "en"]
    return _PLACE.sub(lambda found: parts[found[1]], chosen)


def read(answer: str | None, rubric: Mapping[str, str]) -> dict[str, int] | None:
    """The points of an answer; None where one is missing, or is no whole number from 1 to 5."""
    found = _OBJECT.search(answer or "")
    try:
        said: Any = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    points = {name: said.get(name) for name in rubric}
    if not all(type(value) in (int, float) and value in range(1, MOST + 1) for value in points.values()):
        return None
    return {name: int(value) for name, value in points.items() if value is not None}
