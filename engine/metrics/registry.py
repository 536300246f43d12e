"""All metrics: what each row adds, by measure; the metrics of any selection of rows; and which way a metric improves.

A measure is a row of `METRICS`, or of a task its scores (`task`) and their breakdown (`parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from engine.metrics import METRICS
from engine.metrics.metric import Direction, load_metric
from engine.tasks import TASKS
from engine.tasks.answer import Answer
from engine.tasks.sufficient_stats import Tally, summed
from engine.tasks.task import load_task

Tallies = dict[str, Tally]
"""What a row adds, by measure; a missing measure adds nothing."""

MAIN = "rouge_l"
"""The metric by which replies are sorted where no task names its own."""
_AFTER_THE_TASK = "judge"
"""The first measure that is displayed after a task's scores."""


def direction(name: str) -> Direction:
    """Which way a metric improves, with or without its group (`eval/loss`); NEITHER for a name that is not known."""
    return _directions_of(name.rpartition("/")[2]) or Direction.NEITHER


def is_known(name: str) -> bool:
    """Whether some metric or task has this name, with or without its group."""
    return _directions_of(name.rpartition("/")[2]) is not None


def known_names() -> list[str]:
    """The names of all metrics; those that end in a `*` stand for several."""
    return list(dict.fromkeys(name for directions in _all_directions() for name in directions))


def measured_in_training(sections: Mapping[str, Any]) -> list[str]:
    """The metrics, without their group, that an evaluation during training gives for these sections of a profile."""
    names = [name for each in METRICS for name in load_metric(each).measured_in_training(sections)]
    evaluation = sections["evaluation"]
    if evaluation.task in TASKS and evaluation.samples:
        names += load_task(evaluation.task).directions
    return names


def tally_answer(answer: Answer, task: str | None) -> Tallies:
    """What a reply adds; thinking before it is not scored. Raises ValueError for a reference that is no answer to the
    task."""
    answer = answer.without_thinking()
    tallies: Tallies = {}
    if task is not None:
        row = load_task(task)
        tallies["task"] = row.tally(answer.reply, answer.reference)
        if row.breakdown:
            tallies["parts"] = row.breakdown.tally(answer)
    for name in METRICS:
        if tally := load_metric(name).tally:
            tallies[name] = tally(answer)
    return {name: tally for name, tally in tallies.items() if tally}


def sum_rows(rows: Iterable[Tallies]) -> Tallies:
    """The sums of the rows' tallies, by measure."""
    gathered: dict[str, list[Tally]] = {}
    for row in rows:
        for name, tally in row.items():
            gathered.setdefault(name, []).append(tally)
    return {name: dict(summed(tallies)) for name, tallies in gathered.items()}


def metrics(sums: Mapping[str, Mapping[str, float]], task: str | None) -> dict[str, float]:
    """Metrics by name, from sums by measure, in the order of display."""
    values: dict[str, float] = {}
    for name, work_out in _measures(task):
        if sums.get(name):
            values |= work_out(sums[name])
    return values


def score_row(row: Tallies, task: str | None) -> dict[str, float]:
    """The metrics of one row by itself, without a task's breakdown."""
    return metrics({name: tally for name, tally in row.items() if name != "parts"}, task)


def main_metric(task: str | None) -> str:
    """The metric that says most about a reply."""
    return load_task(task).main if task is not None else MAIN


def _measures(task: str | None) -> Iterator[tuple[str, Callable[[Mapping[str, float]], dict[str, float]]]]:
    row = load_task(task) if task is not None else None
    for name in METRICS:
        if row and name == _AFTER_THE_TASK:
            yield "task", row.metrics
        if work_out := load_metric(name).metrics:
            yield name, work_out
    if row and row.breakdown:
        yield "parts", row.breakdown.metrics


def _directions_of(name: str) -> Direction | None:
    for directions in _all_directions():
        for pattern, found in directions.items():
            if name == pattern or ("*" in pattern and fnmatchcase(name, pattern)):
                return found
    return None


def _all_directions() -> Iterator[Mapping[str, Direction]]:
    for name in METRICS:
        yield load_metric(name).directions
    for name in TASKS:
        task = load_task(name)
        yield task.directions
        if task.breakdown:
            yield task.breakdown.directions
