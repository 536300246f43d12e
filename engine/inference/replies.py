"""Cleaning up generated replies as some models' published code does: finished ones, and while they are generated.

A chat template names the clean-up (see `engine.models.template_metadata`), so it stays with a checkpoint and its
adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from engine.models.template_metadata import read_metadata

_DATE = "[[训练时间]]"
"""The placeholder that the models generate for the date of their training."""
_PREFIXES = "|".join(re.escape(_DATE[:length]) for length in range(len(_DATE) - 1, 0, -1))
_OPEN = rf"\s+\Z|(?:{_PREFIXES})\Z"
"""The end of a text that more text may still change: blanks, which are removed from a reply's end, and part of the
date."""
_HAN = "\u4e00-\u9fff"
_MARKS = ((",", "，"), ("!", "！"), (":", "："), (";", "；"), ("?", "？"))
_ENGLISH = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""Blanks that older decoders put before punctuation, to be removed."""


class Cleanup(NamedTuple):
    """`clean` cleans a finished text. `unfinished` matches the end of a text that more text may still change."""

    clean: Callable[[str], str]
    unfinished: re.Pattern[str]


def _clean_second(text: str) -> str:
    """ChatGLM2: remove surrounding blanks, fill in the date."""
    return text.strip().replace(_DATE, "2023年")


def _clean_third(text: str) -> str:
    """ChatGLM3: as ChatGLM2, and remove the first line, which names a tool, if it is empty."""
    head, line_end, rest = text.partition("\n")
    return _clean_second(head.strip() + line_end + rest.strip())


def _clean_first(text: str) -> str:
    """ChatGLM-6B: its tokenizer writes punctuation in ASCII, which becomes Chinese beside a Chinese character."""
    for written in _ENGLISH:
        text = text.replace(written, written.strip() if written == " ' " else written[1:])
    text = _clean_second(text)
    for ascii_mark, mark in _MARKS:
        text = re.sub(f"([{_HAN}]){re.escape(ascii_mark)}", rf"\1{mark}", text)
        text = re.sub(f"{re.escape(ascii_mark)}([{_HAN}])", rf"{mark}\1", text)
    return text


CLEANUPS = {
    "chatglm": Cleanup(_clean_first, re.compile(rf"{_OPEN}|\s[\s']*\S{{0,3}}\Z|[,!:;?]+\Z")),
    "chatglm2": Cleanup(_clean_second, re.compile(_OPEN)),
    "chatglm3": Cleanup(_clean_third, re.compile(_OPEN)),
}


def find_cleanup(tokenizer: Any) -> Cleanup | None:
    """The clean-up that the tokenizer's template names; None where it names none. Raises ValueError for an unknown
    name."""
    name = read_metadata(tokenizer.chat_template).get("replies")
    if name is None:
        return None
    if name not in CLEANUPS:
        raise ValueError(f"the chat template asks for replies: {name}; known are {', '.join(CLEANUPS)}")
    return CLEANUPS[name]


def clean_reply(tokenizer: Any, text: str) -> str:
    """The text of a finished reply, cleaned up as the tokenizer's template asks."""
    cleanup = find_cleanup(tokenizer)
    return cleanup.clean(text) if cleanup else text


class GrowingReply:
    """A reply while it is generated: emits text as the finished reply will have it."""

    def __init__(self, tokenizer: Any) -> None:
        self._cleanup = find_cleanup(tokenizer)
        self._raw = self.text = ""
        """`text` was emitted."""

    def add(self, piece: str) -> str:
        """The text that the next piece of raw text makes certain."""
        if self._cleanup is None:
            self.text += piece
            return piece
        self._raw += piece
        certain = self._raw
        while match := self._cleanup.unfinished.search(certain):  # what is left may end unfinished again
            certain = certain[: match.start()]
        return self._emit(self._cleanup.clean(certain))

    def finish(self) -> str:
        """The text that was held back."""
        return self._emit(self._cleanup.clean(self._raw)) if self._cleanup else ""

    def _emit(self, text: str) -> str:
        assert text.startswith(self.text), "text that was emitted has changed"
        piece, self.text = text[len(self.text) :], text
        return piece
