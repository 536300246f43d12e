"""The tasks as the app knows them: their names, and how a reply to each is drawn."""

from __future__ import annotations

from engine.tasks import TASKS
from engine.tasks.task import load_task
from engine.tasks.views import Outline, Table, View

__all__ = ["Outline", "Table", "View", "task_names", "task_views"]


def task_names() -> tuple[str, ...]:
    return tuple(TASKS)


def task_views() -> list[View]:
    """The drawings that tasks name, each once."""
    return list(dict.fromkeys(view for name in TASKS if (view := load_task(name).view) is not None))
