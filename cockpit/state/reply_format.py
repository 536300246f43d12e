"""The format of a reply, detected from its text: thinking, triples, a thought graph, other JSON, or plain text.
Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

TRIPLE = ("subject", "predicate", "object")
_FENCE = re.compile(r"\A\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)
_THINKING = re.compile(r"\A\s*<think(?:ing)?>(.*?)(?:</think(?:ing)?>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class ParsedReply:
    """`kind`: `triples`, `graph` or `json`, with the parsed `value`, or `text`. `body` is the reply without its
    thinking."""

    kind: str
    body: str
    thinking: str = ""
    value: Any = None
    thinking_ended: bool = True


def parse_reply(text: str) -> ParsedReply:
    """Detect the format. One surrounding code fence is not part of JSON; whatever does not parse is text."""
    thinking, ended = "", True
    if match := _THINKING.match(text):
        thinking, ended = match[1].strip(), text[: match.end()].rstrip().endswith(">")
        text = text[match.end() :].lstrip()
    value = parse_json(text)
    if value is None:
        return ParsedReply("text", text, thinking, None, ended)
    kind = "triples" if _are_triples(value) else "graph" if _is_graph(value) else "json"
    return ParsedReply(kind, text, thinking, value, ended)


def split_partial_reply(text: str) -> tuple[str, str]:
    """Thinking and body of a reply that is still being written. While the thinking goes on, the body is empty; after
    it, the thinking."""
    start = text.lstrip()[:10]
    if len(start) < 10 and start and any(tag.startswith(start) for tag in ("<think>", "<thinking>")):
        return "", ""  # it may still become a tag
    found = parse_reply(text) if start.startswith("<think") else None
    if found is None:
        return "", text
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


def _are_triples(value: Any) -> bool:
    """Whether it is a list of at least one object, each with the three texts of a triple; other keys are allowed."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and all(isinstance(each.get(key), str) for key in TRIPLE) for each in value)
    )


def _is_graph(value: Any) -> bool:
    """Whether it has standpoints, each a text with arguments. Missing or repeated ids are for an evaluation to
    report."""
    if not isinstance(value, dict) or not isinstance(value.get("standpoints"), list) or not value["standpoints"]:
        return False
    lists = [value["standpoints"], value.get("counter_questions", [])]
    lists += [each.get("arguments", []) if isinstance(each, dict) else None for each in value["standpoints"]]
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
