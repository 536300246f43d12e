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

import re
from typing import Any

_COMMENT = re.compile(r"\s*\{#-?(.*?)-?#\}", re.DOTALL)
_STATEMENT = re.compile(r"\b(replies|trained|context|text|thinking|opened|ends):[ \t]*([^;]*?)\s*(?=;|$)", re.DOTALL)


def read_metadata(template: Any) -> dict[str, str]:
    """The statements of a template by key; none for several templates, or without a comment."""
    comment = _COMMENT.match(template) if isinstance(template, str) else None
    return dict(_STATEMENT.findall(comment[1].strip())) if comment else {}
