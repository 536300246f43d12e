"""The format of a reply, detected from its text: thinking, JSON, or plain text; and how a task draws the JSON. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cockpit.state.tool_text import Part, split_tools
from engine.config.tasks import MARKS, Outline, Table, View, split_thoughts, task_views

_FENCE = re.compile(r"\A\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)
_OPENINGS = tuple(opening for opening, _ in MARKS)


@dataclass(frozen=True)
class ParsedReply:
    """`kind`: `json`, with the parsed `value`, `tools`, with tool calls or results in `parts`, or `text`. `body` is the
    reply without its thinking."""

    kind: str
    body: str
    thinking: str = ""
    value: Any = None
    thinking_ended: bool = True
    view: View | None = None
    """How a task draws the value; None if no task's drawing fits it."""
    parts: tuple[Part, ...] = ()


def parse_reply(text: str) -> ParsedReply:
    """Detect the format. One surrounding code fence is not part of JSON; whatever does not parse is text."""
    thinking, text, ended = split_thoughts(text)
    parts = split_tools(text)
    if any(not isinstance(part, str) for part in parts):
        return ParsedReply("tools", text, thinking, None, ended, parts=tuple(parts))
    value = parse_json(text)
    if value is None:
        return ParsedReply("text", text, thinking, None, ended)
    view = next((view for view in task_views() if _fits(value, view)), None)
    return ParsedReply("json", text, thinking, value, ended, view)


def split_partial_reply(text: str) -> tuple[str, str]:
    """Thinking and body of a reply that is still being written. While the thinking goes on, the body is empty; after
    it, the thinking."""
    begun = text.lstrip()
    if begun and any(opening != begun and opening.startswith(begun) for opening in _OPENINGS):
        return "", ""  # it may still become a tag
    if not begun.startswith(_OPENINGS):
        return "", text
    found = parse_reply(text)
    return (found.thinking, "") if not found.thinking_ended else ("", found.body)


def parse_json(text: str) -> list[Any] | dict[str, Any] | None:
    """The JSON list or object in a text; None for anything else."""
    fenced = _FENCE.match(text)
    body = fenced[1] if fenced else text
    if body.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (list, dict)) else None


def _fits(value: Any, view: View) -> bool:
    return _is_table(value, view) if isinstance(view, Table) else _is_outline(value, view)


def _is_table(value: Any, view: Table) -> bool:
    """Whether it is a list of at least one object, each with a text in every column; other keys are allowed."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict) and all(isinstance(each.get(key), str) for key in view.columns) for each in value
        )
    )


def _is_outline(value: Any, view: Outline) -> bool:
    """Whether it has points, each a text with details. Missing or repeated ids are for an evaluation to report."""
    if not isinstance(value, dict) or not isinstance(value.get(view.points), list) or not value[view.points]:
        return False
    lists = [value[view.points], value.get(view.objections, [])]
    lists += [each.get(view.details, []) if isinstance(each, dict) else None for each in value[view.points]]
    return all(
        isinstance(items, list) and all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in items)
        for items in lists
    )


def indent_json(text: str) -> str:
    """JSON on indented lines; any other text unchanged."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return text
