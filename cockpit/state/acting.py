"""The settings that act on the next question, in a line; and the messages that a model gets for a question. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.chat_tree import ChatReply, ChatTree, Message
from cockpit.state.formatting import counted
from engine.config.tasks import task_messages

NAMES = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repetition_penalty": "repetition",
    "no_repeat_ngram": "no-repeat n",
    "seed": "seed",
    "stop": "stop",
}
"""Setting -> its name in the line. Those that sample only are left out of a greedy one."""
SAMPLES = ("temperature", "top_k", "top_p", "min_p", "seed")
NEUTRAL = {"repetition_penalty": 1.0}


def describe_acting(settings: Mapping[str, Any], system: str) -> str:
    """What acts on the next question: the task, the system prompt, the sampling."""
    parts = []
    if task := settings.get("task"):
        parts.append(tr("task {task}: its prompt alone is sent", task=str(task).replace("_", " ")))
        parts.append(tr("JSON must fit") if settings.get("constrained") else tr("JSON free"))
    elif system:
        parts.append(tr("system prompt of {words}", words=counted(len(system.split()), "word")))
    greedy = not settings.get("temperature")
    parts += [tr("greedy")] if greedy else []
    for key, name in NAMES.items():
        value = settings.get(key)
        if value in (None, [], "", NEUTRAL.get(key)) or (greedy and key in SAMPLES):
            continue
        parts.append(f"{tr(name)} {'|'.join(value) if isinstance(value, list) else f'{value:g}'}")
    if most := settings.get("max_new_tokens"):
        parts.append(tr("at most {tokens}", tokens=counted(most, "token")))
    return " · ".join(parts)


def sent_messages(tree: ChatTree, question: int, column: int, settings: Mapping[str, Any]) -> list[Message]:
    """The messages that the target in `column` gets for a question: with a task, those of the task alone. Raises
    ValueError for a task that there is not."""
    if task := settings.get("task"):
        return task_messages(str(task), tree.turns[question].text)
    return tree.messages(question, column)


def read_settings(reply: ChatReply) -> dict[str, Any]:
    """The settings that a reply was sampled with; empty where its file does not say."""
    settings = reply.facts.get("settings")
    return {str(name): value for name, value in settings.items()} if isinstance(settings, Mapping) else {}


def as_asked(tree: ChatTree, reply: ChatReply) -> ChatTree:
    """The conversation with the system prompt that the reply was written under: it may have been changed since."""
    return replace(tree, system=str(reply.facts.get("system", tree.system)))
