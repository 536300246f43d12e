"""A request to a model, by names: `messages` or `text`, a `task`, and the settings of `sampling.Sampling`.

A task puts its prompt around the bare text, byte for byte as in training; with `constrained`, the reply also fits its
schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.inference.sampling import Sampling, make_sampling
from engine.tasks.task import load_task

Messages = list[dict[str, str]]
Prompt = str | Messages
"""A text to be continued as it stands, or a conversation."""


def read_prompt(request: Mapping[str, Any]) -> Prompt:
    """The conversation or text of a request; with a task, the task's conversation around the last text.

    Raises ValueError for an unknown task.
    """
    given: Prompt = request["messages"] if request.get("messages") is not None else request["text"]
    if request.get("task") is None:
        return given
    text = given if isinstance(given, str) else given[-1]["content"]
    return load_task(request["task"]).messages(text)


def read_sampling(request: Mapping[str, Any]) -> Sampling:
    """The settings of a request, with the task's schema where `constrained` is true. Raises ValueError."""
    if not request.get("constrained"):
        return make_sampling(request)
    if request.get("task") is None:
        raise ValueError("constrained keeps replies to the schema of a task: name the task too, or give a schema")
    if request.get("schema") is not None:
        raise ValueError("constrained uses the task's schema: leave out constrained or your own schema")
    return make_sampling({**request, "schema": load_task(request["task"]).schema})


def parse_reply(request: Mapping[str, Any], reply: str) -> dict[str, Any]:
    """`parsed`: the value that the request's task reads from the reply, None where it does not fit; empty without a
    task."""
    if request.get("task") is None:
        return {}
    return {"parsed": load_task(request["task"]).parse(reply)}
