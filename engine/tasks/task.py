"""What a task is: everything that is specific to one kind of question and its structured reply."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.tasks import TASKS
from engine.tasks.answer import Answer
from engine.tasks.direction import Direction
from engine.tasks.sufficient_stats import Tally, summed, tally_each
from engine.tasks.views import View

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Breakdown:
    """A task's scores once more for each group of its facts. Names end in the group: `triples_f1.born_in`."""

    tally: Callable[[Answer], Tally]
    metrics: Callable[[Mapping[str, float]], dict[str, float]]
    directions: Mapping[str, Direction]
    """By pattern: `triples_f1.*`."""


def _is_any(columns: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Task:
    """One row of `engine.tasks.TASKS`, defined as `TASK` in its module."""

    messages: Callable[[str], Messages]
    """The conversation that asks for the task on a text. Training data, chat, probes and evaluation send these
    bytes."""
    schema: Mapping[str, Any]
    """The JSON schema of a reply."""
    parse: Callable[[str], Any]
    """The value of a reply, None where it does not fit the schema."""
    tally: Callable[[str, str | None], Tally]
    """What a reply adds to the task's scores beside its reference. Raises ValueError for a reference that is no
    answer."""
    metrics: Callable[[Mapping[str, float]], dict[str, float]]
    """The scores by name, from the sums of tallies."""
    directions: Mapping[str, Direction]
    """Every name that `metrics` may give, and which way it improves."""
    main: str
    """The name of the score by which replies are sorted."""
    view: View | None = None
    """How the app draws a reply; None: as a tree of its JSON."""
    concerns: Callable[[Mapping[str, Any]], bool] = _is_any
    """Whether a row with these other columns asks for this task, where a data set holds several."""
    breakdown: Breakdown | None = None
    expansion: str = ""
    """The module that makes new rows of the task (`engine.prep.expand` says what it holds); none: as of any other
    rows."""

    def score(self, replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """`metrics` over all replies.

        Raises ValueError for lists of different lengths, and for a reference that is no answer to the task.
        """
        return self.metrics(summed(tally_each(self.tally, replies, references)))


def load_task(name: str) -> Task:
    """The task of that name. Raises ValueError when there is none."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}: choose one of {', '.join(TASKS)}")
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task
