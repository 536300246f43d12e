"""Every row of the table of tasks: its parts agree."""

from __future__ import annotations

import importlib

import pytest

from engine.config.tasks import task_names, task_views
from engine.metrics import registry
from engine.prep.expand.seeds import expansions
from engine.tasks import TASKS
from engine.tasks.task import load_task


@pytest.mark.parametrize("name", TASKS)
def test_the_parts_of_a_task_agree(name: str) -> None:
    task = load_task(name)
    assert set(task.score([], [])) == set(task.directions) and task.main in task.directions
    assert task.messages("a question")[-1]["role"] == "user"
    assert task.schema["type"] in ("array", "object") and task.parse("no JSON") is None
    assert task.concerns({})
    if task.expansion:
        made = importlib.import_module(task.expansion)
        assert set(made.PROMPTS) == {"en", "zh"} and expansions()[name] == task.expansion
    if task.breakdown:
        assert all(registry.is_known(pattern.replace("*", "group")) for pattern in task.breakdown.directions)


def test_the_app_learns_names_and_views() -> None:
    assert task_names() == tuple(TASKS)
    assert {type(view).__name__ for view in task_views()} == {"Table", "Outline"}


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no task 'riddles': choose one of triples, thought_graph"):
        load_task("riddles")
