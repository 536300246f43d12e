"""What a chat template says about itself beside its text: `{#- NAME. key: value; key: value -#}`, its first comment.

Known keys are
- `replies: NAME`: what is done to a generated reply, a row of `engine.inference.replies`;
- `trained: last`: earlier replies stand in the text as the context of the last, which alone is trained;
- `context: both ways`: the model reads what comes before the reply in both directions, so nothing of it can be predicted;
- `text: TOKENS`: what a text that is no conversation begins with, in place of the tokenizer's own special tokens;
- `thinking: OPEN CLOSE`: what stands before and behind the thinking that a reply begins with;
- `ends: TOKENS`: tokens, parted by blanks, with which the turn of another begins, and that end a reply as its end token does.
"""

from __future__ import annotations

import re
from typing import Any

_COMMENT = re.compile(r"\s*\{#-?(.*?)-?#\}", re.DOTALL)
_STATEMENT = re.compile(r"\b(replies|trained|context|text|thinking|ends):[ \t]*([^;]*?)\s*(?=;|$)", re.DOTALL)


def read_metadata(template: Any) -> dict[str, str]:
    """The statements of a template by their key; none for a template of several, or without any."""
    comment = _COMMENT.match(template) if isinstance(template, str) else None
    return dict(_STATEMENT.findall(comment[1].strip())) if comment else {}
