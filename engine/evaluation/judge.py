"""Replies judged by a model behind an OpenAI-compatible service, by the criteria of a rubric.

Retries, rate limits, budget and journal are those of `engine.llm_api`. No answer is paid for twice: a second call asks
only for those that are missing.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from engine.llm_api import client
from engine.llm_api.budget import Budget, Usage, worst_case
from engine.llm_api.journal import Journal
from engine.llm_api.retries import Requester
from engine.metrics.words import script
from engine.options.evaluation import JudgeOptions
from engine.tasks.thoughts import drop_thoughts

MOST = 5
"""The most points of a criterion."""
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
    """`points` by row, None where the judge's answer is missing or cannot be read. Rows that were left out because of a
    limit are absent, and `stopped` says why."""

    points: dict[int, dict[str, int] | None]
    usage: Usage
    cost: float
    stopped: str


def judge(
    cases: Sequence[Case], options: JudgeOptions, journal: Path, progress: Callable[[int, int], None]
) -> Verdicts:
    """Ask the judge about all cases. Answers are kept, also when this raises.

    Raises ProblemError without a key and for a service that refuses or fails; ValueError for invalid options, and for a
    journal that was begun with other options.
    """
    budget = Budget(options)
    key = client.api_key(options)
    settings = {name: getattr(options, name) for name in ("model", "rubric", "prompt", "temperature", "max_tokens")}
    with closing(Journal(journal, settings)) as asked:
        for used in asked.used:
            budget.spend(used)
        stopped = asyncio.run(_ask_all(cases, options, key, asked, budget, progress))
        points = {
            case.row: read_points(asked.answers[case.row].reply, options.rubric)
            for case in cases
            if case.row in asked.answers
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
    """Ask about the cases without an answer. Returns why some were left out, else nothing."""
    waiting = [case for case in cases if case.row not in journal.answers]
    if not waiting:
        return ""
    asking, going, stopped = Requester(options, journal, budget, seed=0), set[asyncio.Task[None]](), ""
    async with client.Service(options, key) as connection:
        while going or (waiting and not asking.fatal_error and not stopped):
            while waiting and len(going) < options.concurrency and not asking.fatal_error:
                text = write_prompt(waiting[0], options)
                lack = budget.shortage(worst_case(text, options))
                if lack:
                    stopped = "" if going else lack  # requests on their way may use less than was reserved for them
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


def write_prompt(case: Case, options: JudgeOptions) -> str:
    """The prompt for the judge. A placeholder inside a case's own text is left as it is."""
    rubric = "\n".join(f"- {name}: {meaning}" for name, meaning in options.rubric.items())
    parts = {"question": case.question, "reply": case.reply, "reference": case.reference or "", "rubric": rubric}
    chosen = options.prompt or PROMPTS["zh" if script(case.question) == "zh" else "en"]
    return _PLACE.sub(lambda found: parts[found[1]], chosen)


def read_points(answer: str | None, rubric: Mapping[str, str]) -> dict[str, int] | None:
    """The points of an answer; None unless each criterion has a whole number from 1 to 5."""
    found = _OBJECT.search(drop_thoughts(answer or ""))
    try:
        value: Any = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    points = {name: value.get(name) for name in rubric}
    if not all(type(each) in (int, float) and each in range(1, MOST + 1) for each in points.values()):
        return None
    return {name: int(each) for name, each in points.items() if each is not None}
