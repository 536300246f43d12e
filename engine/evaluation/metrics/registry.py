"""All that is measured of rows: what each adds, by measure, and the metrics of any choice of rows.

A measure is a row of `METRICS`, the `task` with its `parts`, or what a model's own numbers say: `tokens`, `preferences`, `judge`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.evaluation.metrics import METRICS, judge_scores, preferences, tokens
from engine.tasks import PARTS, TASKS
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, summed

Tallies = dict[str, Tally]
"""What a row adds to each measure; one that is missing adds nothing."""

FALLING = frozenset({"loss", "perplexity", "no_stop_rate", "repetition", "latency", "judge_unread"})
"""Metrics of which less is better."""
NEUTRAL = frozenset(
    {
        "reply_characters",
        "reply_tokens",
        "score_chosen",
        "score_rejected",
        "standpoints_per_graph",
        "arguments_per_graph",
        "counter_questions_per_graph",
    }
)
"""Metrics of which neither more nor less is better."""


def direction(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    return 0 if name in NEUTRAL else -1 if name in FALLING else 1


def of_answer(answer: Answer, task: str | None) -> Tallies:
    """What a reply adds. Raises ValueError for a reference that is no answer to the task."""
    found: Tallies = {}
    if task is not None:
        found["task"] = importlib.import_module(TASKS[task]).tally(answer.reply, answer.reference)
    if task in PARTS:
        found["parts"] = importlib.import_module(PARTS[task]).tally(answer)
    for name, module in METRICS.items():
        found[name] = importlib.import_module(module).tally(answer)
    return {name: tally for name, tally in found.items() if tally}


def together(rows: Iterable[Tallies]) -> Tallies:
    """Sums by measure."""
    gathered: dict[str, list[Tally]] = {}
    for row in rows:
        for name, tally in row.items():
            gathered.setdefault(name, []).append(tally)
    return {name: dict(summed(tallies)) for name, tallies in gathered.items()}


def metrics(sums: Mapping[str, Mapping[str, float]], task: str | None) -> dict[str, float]:
    """Metrics by name of sums by measure, those first that say most."""
    found: dict[str, float] = {}
    for name, of in _measures(task).items():
        if sums.get(name):
            found |= of(sums[name])
    return found


def scores(row: Tallies, task: str | None) -> dict[str, float]:
    """The metrics of one row by itself, without a task's parts."""
    return metrics({name: tally for name, tally in row.items() if name != "parts"}, task)


def main(task: str | None) -> str:
    """The metric that says most of a reply."""
    found: str = importlib.import_module(TASKS[task]).MAIN if task is not None else "rouge_l"
    return found


def _measures(task: str | None) -> dict[str, Callable[[Mapping[str, float]], dict[str, float]]]:
    modules: dict[str, Any] = {"tokens": tokens, "preferences": preferences}
    if task is not None:
        modules["task"] = importlib.import_module(TASKS[task])
    modules["judge"] = judge_scores
    modules |= {name: importlib.import_module(module) for name, module in METRICS.items()}
    if task in PARTS:
        modules["parts"] = importlib.import_module(PARTS[task])
    return {name: module.metrics for name, module in modules.items()}
