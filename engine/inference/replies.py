"""What is done to a generated reply before anybody sees it, as the models that ask for it were published: whole, and as it grows.

A chat template names it (see `engine.models.template_metadata`), so it goes with a checkpoint and with every adapter of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from engine.models.template_metadata import read_metadata

_DATE = "[[训练时间]]"
"""What the models were trained to say for the time of their training."""
_PREFIXES = "|".join(re.escape(_DATE[:length]) for length in range(len(_DATE) - 1, 0, -1))
_OPEN = rf"\s+\Z|(?:{_PREFIXES})\Z"
"""At the end of a text, what the text behind it may still change: blanks, which are removed from a reply's end, and part of the date."""
_HAN = "\u4e00-\u9fff"
_MARKS = ((",", "，"), ("!", "！"), (":", "："), (";", "；"), ("?", "？"))
_ENGLISH = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""Blanks that decoders of old put before these, and that are taken out again."""


class Tidying(NamedTuple):
    """`whole` tidies a finished text. `opened` finds the first place in a text behind which more text could still change what it becomes."""

    whole: Callable[[str], str]
    opened: re.Pattern[str]


def _second(text: str) -> str:
    """ChatGLM2's: without blanks around it, the date filled in."""
    return text.strip().replace(_DATE, "2023年")


def _third(text: str) -> str:
    """ChatGLM3's: as the second's, and without the line that names a tool where it names none. Where it does, that line stays."""
    head, line_end, rest = text.partition("\n")
    return _second(head.strip() + line_end + rest.strip())


def _first(text: str) -> str:
    """ChatGLM-6B's: its tokenizer writes punctuation in ASCII, which becomes that of Chinese beside a Chinese character."""
    for written in _ENGLISH:
        text = text.replace(written, written.strip() if written == " ' " else written[1:])
    text = _second(text)
    for ascii_mark, mark in _MARKS:
        text = re.sub(f"([{_HAN}]){re.escape(ascii_mark)}", rf"\1{mark}", text)
        text = re.sub(f"{re.escape(ascii_mark)}([{_HAN}])", rf"{mark}\1", text)
    return text


TIDYINGS = {
    "chatglm": Tidying(_first, re.compile(rf"{_OPEN}|\s[\s']*\S{{0,3}}\Z|[,!:;?]+\Z")),
    "chatglm2": Tidying(_second, re.compile(_OPEN)),
    "chatglm3": Tidying(_third, re.compile(_OPEN)),
}


def tidying(tokenizer: Any) -> Tidying | None:
    """What the tokenizer's template asks for. Raises ValueError for a name that is not known."""
    name = read_metadata(tokenizer.chat_template).get("replies")
    if name is None:
        return None
    if name not in TIDYINGS:
        raise ValueError(f"the chat template asks for replies: {name}; known are {', '.join(TIDYINGS)}")
    return TIDYINGS[name]


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The reply that generated tokens are."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    tidy = tidying(tokenizer)
    return tidy.whole(text) if tidy else text


class Growing:
    """A reply while it is generated: text that may be shown at once, as the finished reply will have it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tidy = tidying(tokenizer)
        self._raw = self.text = ""
        """`text`: what has been told."""

    def add(self, piece: str) -> str:
        """What has become certain with the next piece of raw text."""
        if self._tidy is None:
            self.text += piece
            return piece
        self._raw += piece
        certain = self._raw
        while opened := self._tidy.opened.search(certain):  # what is left may end open again
            certain = certain[: opened.start()]
        return self._tell(self._tidy.whole(certain))

    def finish(self) -> str:
        """What was held back."""
        return self._tell(self._tidy.whole(self._raw)) if self._tidy else ""

    def _tell(self, text: str) -> str:
        assert text.startswith(self.text), "text that was told has changed"
        piece, self.text = text[len(self.text) :], text
        return piece
