"""Sets the thinking at the start of a reply apart from the answer.

A reply may hold `<think>…</think>` before its answer; the closing mark alone, where the prompt has opened the thinking;
or an opening mark alone, where the reply was cut off while the model was still thinking.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

Marks = tuple[str, str]
"""The marks before and after thinking."""

MARKS: tuple[Marks, ...] = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))
"""The marks that models use whose chat template declares no others (`engine.models.template_metadata`)."""


class Thoughts(NamedTuple):
    """A reply in two parts. Blanks around the thinking belong to neither."""

    thinking: str
    answer: str
    ended: bool = True
    """Whether the thinking has ended; also true without any."""


def split_thoughts(reply: str, marks: Sequence[Marks] = MARKS, *, opened: bool | None = None) -> Thoughts:
    """Split a reply into its thinking and its answer. A reply without thinking is returned unchanged.

    `opened` says whether the prompt has opened the thinking; None if that is unknown. Then a closing mark without an
    opening one before it ends the thinking, unless the whole reply is JSON, which may quote the mark.
    """
    begun = reply.lstrip()
    for opening, closing in marks:
        if opened or not begun.startswith(opening):
            continue
        thinking, ended, answer = begun[len(opening) :].partition(closing)
        return Thoughts(thinking.strip(), answer.lstrip(), bool(ended))
    if opened is False:
        return Thoughts("", reply)
    found = [(place, opening, closing) for opening, closing in marks if (place := reply.find(closing)) >= 0]
    if found:
        place, opening, closing = min(found)
        if opened or (opening not in reply[:place] and not _is_json(reply)):
            return Thoughts(reply[:place].strip(), reply[place + len(closing) :].lstrip())
    return Thoughts(reply.strip(), "", False) if opened else Thoughts("", reply)


def drop_thoughts(reply: str, marks: Sequence[Marks] = MARKS) -> str:
    """A reply without its thinking."""
    return split_thoughts(reply, marks).answer


def _is_json(text: str) -> bool:
    try:
        json.loads(text.strip().removeprefix("```json").removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True
