"""The JSON of a reply, which may stand behind thinking and in a Markdown fence."""

from __future__ import annotations

import json
import re
from typing import Any

from engine.tasks.thoughts import drop_thoughts

_FENCED = re.compile(r"```json\s(.*)```", re.DOTALL)


def unfence(reply: str) -> str:
    """The reply without surrounding blanks and without one surrounding ```` ```json ```` fence."""
    reply = reply.strip()
    fenced = _FENCED.fullmatch(reply)
    return fenced[1].strip() if fenced else reply


def load_json(reply: str) -> Any:
    """The JSON value that a reply consists of, fenced or bare, apart from thinking before it.

    Raises ValueError for anything else, including `NaN` and `Infinity`, which are not JSON, and nesting too deep to
    read.
    """
    try:
        return json.loads(unfence(drop_thoughts(reply)), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply")


def is_json(reply: str) -> bool:
    """Whether the reply is a JSON value."""
    try:
        load_json(reply)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
