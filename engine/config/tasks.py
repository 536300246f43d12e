"""The tasks as the app knows them: their names, how a reply to each is drawn, and where its thinking ends."""

from __future__ import annotations

from typing import Any

from engine.tasks import TASKS
from engine.tasks.task import load_task
from engine.tasks.thoughts import MARKS, split_thoughts
from engine.tasks.views import Outline, Table, View

__all__ = [
    "MARKS",
    "Outline",
    "Table",
    "View",
    "split_thoughts",
    "task_messages",
    "task_names",
    "task_schema",
    "task_views",
]


def task_names() -> tuple[str, ...]:
    return tuple(TASKS)


def task_messages(name: str, text: str) -> list[dict[str, str]]:
    """The conversation that the model gets for a text, in training and in chat."""
    return load_task(name).messages(text)


def task_schema(name: str) -> dict[str, Any]:
    """The JSON schema that a reply must fit."""
    return dict(load_task(name).schema)


def task_views() -> list[View]:
    """The drawings that tasks name, each once."""
    return list(dict.fromkeys(view for name in TASKS if (view := load_task(name).view) is not None))
