"""What a reply is, told by its shape: thinking, JSON that a task draws in its own way, any other JSON, or text. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textual.content import Content

from engine.config.tasks import Outline, Table, View, task_views

NEW = "bold underline $success"
_HAN = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+|[^\w\s]")
"""Where words have no blanks between them each character is one."""
_LINES = re.compile(r"\S(?:[^\n]*\S)?")
_FENCE = re.compile(r"\A\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)
_THINKING = re.compile(r"\A\s*<think(?:ing)?>(.*?)(?:</think(?:ing)?>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Shape:
    """`kind`: `json` with the parsed `value`, or `text`. `body` is the reply without its thinking."""

    kind: str
    body: str
    thinking: str = ""
    value: Any = None
    thought: bool = True
    """Whether the thinking has come to its end."""
    view: View | None = None
    """How a task draws the value; None where no task's drawing fits it."""


def shape(text: str) -> Shape:
    """One surrounding fence is not a part of JSON; whatever does not parse is text."""
    thinking, thought = "", True
    if match := _THINKING.match(text):
        thinking, thought = match[1].strip(), text[: match.end()].rstrip().endswith(">")
        text = text[match.end() :].lstrip()
    value = parsed(text)
    if value is None:
        return Shape("text", text, thinking, None, thought)
    view = next((view for view in task_views() if _fits(value, view)), None)
    return Shape("json", text, thinking, value, thought, view)


def opened(text: str) -> tuple[str, str]:
    """A reply that is still being written: what it has thought so far while the thinking goes on, and what it has said besides."""
    start = text.lstrip()[:10]
    if len(start) < 10 and start and any(tag.startswith(start) for tag in ("<think>", "<thinking>")):
        return "", ""  # it may become a tag yet
    found = shape(text) if start.startswith("<think") else None
    if found is None:
        return "", text
    return (found.thinking, "") if not found.thought else ("", found.body)


def parsed(text: str) -> list[Any] | dict[str, Any] | None:
    """The JSON list or object that a text is; None for anything else."""
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
    """At least one object, each with a text in every column; more keys do no harm."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict) and all(isinstance(each.get(key), str) for key in view.columns) for each in value
        )
    )


def _is_outline(value: Any, view: Outline) -> bool:
    """At least one point, each a text with details; that ids are missing or doubled is for an evaluation to say."""
    if not isinstance(value, dict) or not isinstance(value.get(view.points), list) or not value[view.points]:
        return False
    lists = [value[view.points], value.get(view.objections, [])]
    lists += [each.get(view.details, []) if isinstance(each, dict) else None for each in value[view.points]]
    return all(
        isinstance(items, list) and all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in items)
        for items in lists
    )


def indented(text: str) -> str:
    """JSON on lines that one can read; anything else as it is."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return text


def alike(texts: Sequence[str]) -> bool:
    """Whether the texts share enough with the first that marking what differs says something: half of the longer one's words."""
    first, *others = [Counter(match[0] for match in _WORDS.finditer(text)) for text in texts]
    return all((first & other).total() * 2 >= max(first.total(), other.total()) for other in others)


def compared(before: str, now: str) -> tuple[Content, str]:
    """The text as it is now with the words marked that are new, and how many came and went. Blanks are not compared."""
    old = [match[0] for match in _WORDS.finditer(before)]
    new = list(_WORDS.finditer(now))
    marked = Content(now)
    come = gone = 0
    matcher = difflib.SequenceMatcher(None, old, [match[0] for match in new], autojunk=False)
    for what, old_start, old_stop, start, stop in matcher.get_opcodes():
        if what == "equal":
            continue
        gone += sum(word[0].isalnum() for word in old[old_start:old_stop])
        come += sum(match[0][0].isalnum() for match in new[start:stop])
        # Blanks between two new words are marked with them, those at the start of a line are not worth a mark.
        for line in _LINES.finditer(now, new[start].start(), new[stop - 1].end()) if stop > start else ():
            marked = marked.stylize(NEW, *line.span())
    return marked, f"{come} word{'s'[: come != 1]} new, {gone} gone"
