"""Reads what a chat template declares about itself in its first comment: `{#- NAME. key: value; key: value -#}`.

Known keys:

- `replies: NAME`: how a generated reply is processed, a row of `engine.inference.replies`;
- `trained: last`: earlier replies are context of the last one, which alone is trained;
- `context: both ways`: the model attends to the context of a reply in both directions, so none of it is predicted;
- `text: TOKENS`: what a text without conversation starts with, in place of the tokenizer's special tokens;
- `thinking: OPEN CLOSE`: the marks around the thinking that a reply starts with;
- `opened: TEXT`: what the template opened a thought with before every reply, as JSON, before this was taken out (see
  `engine.models.chat_template`);
- `ends: TOKENS`: tokens, separated by spaces, that start another's turn, and so end a reply as its end token does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from engine.tasks.thoughts import MARKS, Marks

_COMMENT = re.compile(r"\s*\{#-?(.*?)-?#\}", re.DOTALL)
_STATEMENT = re.compile(r"\b(replies|trained|context|text|thinking|opened|ends):[ \t]*([^;]*?)\s*(?=;|$)", re.DOTALL)


def choose_template(template: Any) -> str:
    """The template for conversations without tools; empty without any.

    A tokenizer has one template, or several by name, of which transformers takes `default`.
    """
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def takes_tools(template: Any) -> bool:
    """Whether a conversation with tools is rendered with them."""
    if isinstance(template, dict) and template.get("tool_use"):
        return True
    return "tools" in choose_template(template)


def read_metadata(template: Any) -> dict[str, str]:
    """The statements of a template by key; none without a comment."""
    comment = _COMMENT.match(choose_template(template))
    return dict(_STATEMENT.findall(comment[1].strip())) if comment else {}


def read_thinking_marks(template: Any) -> Marks:
    """The marks before and after thinking: those that the template declares, else the first known ones whose end occurs
    in it, else the first of all. Raises ValueError for a template that does not declare two."""
    if named := read_metadata(template).get("thinking", "").split():
        if len(named) != 2:
            raise ValueError(f"the chat template's `thinking:` names {len(named)} marks, not one before and one behind")
        return named[0], named[1]
    text = choose_template(template)
    return next((pair for pair in MARKS if pair[1] in text), MARKS[0])


def read_template(folder: Path) -> Any:
    """The chat template in a tokenizer's folder: text, or texts by name; None where there is none, or where its file
    cannot be read."""
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(found, list):
        return {each["name"]: each["template"] for each in found if {"name", "template"} <= set(each)}
    return found
