"""What somebody asks of a model, by names: `messages` or `text`, a `task`, and the settings of `sampling.Sampling`.

A task gives its prompt around the bare text, byte for byte as training did; with `constrained` also its schema, which the reply then fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.inference.sampling import Sampling, sampling_of
from engine.tasks.task import load_task

Messages = list[dict[str, str]]
Asked = str | Messages
"""A text to be continued as it stands, or a conversation."""


def prompt_of(asked: Mapping[str, Any]) -> Asked:
    """With a task its conversation around the last text; else the conversation, or the text, as it is. Raises ValueError."""
    given: Asked = asked["messages"] if asked.get("messages") is not None else asked["text"]
    if asked.get("task") is None:
        return given
    text = given if isinstance(given, str) else given[-1]["content"]
    return load_task(asked["task"]).messages(text)


def settings_of(asked: Mapping[str, Any]) -> Sampling:
    """The settings, with the task's schema where `constrained` is true. Raises ValueError."""
    if not asked.get("constrained"):
        return sampling_of(asked)
    if asked.get("task") is None:
        raise ValueError("constrained keeps replies to the schema of a task: name the task too, or give a schema")
    if asked.get("schema") is not None:
        raise ValueError("constrained and a schema of one's own do not go together")
    return sampling_of({**asked, "schema": load_task(asked["task"]).schema})


def parsed(asked: Mapping[str, Any], reply: str) -> dict[str, Any]:
    """`parsed`: the reply's value as its task reads it, None where it does not fit; nothing without a task."""
    if asked.get("task") is None:
        return {}
    return {"parsed": load_task(asked["task"]).parse(reply)}
