"""From tokens to text: whole characters, thinking apart from the reply, and an end before a stop text.

Text that was emitted never changes, and all of it together is the finished reply: streamed and unstreamed text are made
here, by the same steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.inference.replies import GrowingReply, clean_reply
from engine.models.template_metadata import read_thinking_marks
from engine.tasks.thoughts import Marks, split_thoughts

_CONTEXT = 4
"""Tokens before a text that decide how its first one is decoded."""
_LOOKED_AT = 32
"""Tokens at a prompt's end among which thinking may have been opened."""


class Delta(NamedTuple):
    """Text that a token adds."""

    text: str = ""
    thinking: str = ""


@dataclass
class Detokenizer:
    """Turns ids into text, one by one, never emitting half a character.

    A token may end inside a UTF-8 character, which decodes to U+FFFD, and may decode differently without its
    predecessor. So decoding starts a few tokens back, and text that ends in U+FFFD is held back. Special tokens have no
    text, except those of `shown`.
    """

    tokenizer: Any
    ids: list[int] = field(default_factory=list)
    text: str = ""
    shown: Mapping[int, str] = field(default_factory=dict)
    _start: int = 0
    _emitted: int = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Before the first token: the text continues that of these ids."""
        self.ids = [*ids[-_CONTEXT:]]
        self._emitted = len(self.ids)

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self.ids.append(token)
        if token in self.shown:
            self._start = self._emitted = len(self.ids)
            self.text += self.shown[token]
            return self.shown[token]
        before = self._decode(self.ids[self._start : self._emitted])
        now = self._decode(self.ids[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start, self._emitted = self._emitted, len(self.ids)
        piece = now[len(before) :]
        self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StreamedReply:
    """One reply, token by token. `text` and `thinking` were emitted; `stopped` is whether one of the texts of `stop`
    occurred.

    Thinking begins the reply, or is opened at the end of the prompt; blanks around it belong to neither. Stop texts
    count only in the reply. Raises ValueError for a template whose metadata names something unknown.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        *,
        continues: bool = False,
        shown: Sequence[str] = (),
    ) -> None:
        """`continues`: the reply goes on with the prompt's text, so that a blank between them belongs to it. `shown`:
        special tokens that are text nevertheless."""
        self.marks = thinking_marks(tokenizer)
        self._detokenizer = Detokenizer(tokenizer, shown=_find_special_marks(tokenizer, (*self.marks, *shown)))
        if continues:
            self._detokenizer.follow(prompt)
        self._growing = GrowingReply(tokenizer)
        self._stop = tuple(stop)
        self._place = "thinking" if opens_thinking(tokenizer, prompt) else "before"
        self._held = ""
        self.thinking = ""
        self.stopped = False

    @property
    def text(self) -> str:
        return self._growing.text

    @property
    def raw(self) -> str:
        """Everything that was decoded, marks and stop texts included."""
        return self._detokenizer.text

    def add(self, token: int) -> Delta:
        """Take the next token, and return the text that it adds. Not to be called once it has `stopped`."""
        assert not self.stopped
        return self._sort(self._detokenizer.add(token))

    def finish(self) -> Delta:
        """The text that was held back, at the end of the reply."""
        if self._place == "thinking":
            return Delta(self._growing.finish(), self._emit_thinking(self._held.rstrip()))
        text = ""
        if not self.stopped:
            text = self._emit_reply()
        if not self.stopped:
            text += self._growing.add(self._held)
        return Delta(text + self._growing.finish())

    def _sort(self, piece: str) -> Delta:
        self._held += piece
        thought = ""
        opening, closing = self.marks
        if self._place == "before":
            begun = self._held.lstrip()
            if begun.startswith(opening):
                self._place, self._held = "thinking", begun[len(opening) :]
            elif not opening.startswith(begun):
                self._place = "reply"
        if self._place == "thinking":
            inside, closed, after = self._held.partition(closing)
            if closed:
                thought, self._place, self._held = self._emit_thinking(inside.rstrip()), "after", after
            else:
                certain = self._held[: split_place(self._held, (closing,))].rstrip()
                thought, self._held = self._emit_thinking(certain), self._held[len(certain) :]
        if self._place == "after":
            self._held = self._held.lstrip()
            self._place = "reply" if self._held else "after"
        return Delta(self._emit_reply() if self._place == "reply" else "", thought)

    def _emit_thinking(self, text: str) -> str:
        """The caller holds back blanks at the end: they count if more text follows."""
        text = text if self.thinking else text.lstrip()
        self.thinking += text
        return text

    def _emit_reply(self) -> str:
        found = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        certain = min(found)[1] if found else split_place(self._held, self._stop)  # the one that is complete first
        piece, self._held = self._held[:certain], self._held[certain:]
        self.stopped = bool(found)
        return self._growing.add(piece) if piece else ""


class DecodedReply(NamedTuple):
    """A finished reply. `raw` is its whole text with the marks of thinking, also one that the prompt has opened."""

    raw: str
    thinking: str
    text: str


def decode_reply(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> DecodedReply:
    """The texts of a finished reply, as `StreamedReply` would emit them. `ids` are without the stop token."""
    marks, opened = thinking_marks(tokenizer), opens_thinking(tokenizer, prompt)
    raw = _decode_with_marks(tokenizer, ids, marks)
    found = split_thoughts(raw, (marks,), opened=opened)
    text = clean_reply(tokenizer, found.answer)
    return DecodedReply(marks[0] + raw if opened else raw, found.thinking, text)


def _decode_with_marks(tokenizer: Any, ids: Sequence[int], marks: Marks) -> str:
    """The text of all tokens; special tokens have none unless they are marks."""
    shown = _find_special_marks(tokenizer, marks)
    parts, start = [], 0
    for place, token in enumerate((*ids, None)):
        if token is None or token in shown:
            part = list(ids[start:place])
            parts.append(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            parts.append("" if token is None else shown[token])
            start = place + 1
    return "".join(parts)


def _find_special_marks(tokenizer: Any, marks: Sequence[str]) -> dict[int, str]:
    """The marks that are special tokens, which would have no text otherwise."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    special = {*tokenizer.all_special_ids}
    return {added[mark]: mark for mark in marks if added.get(mark) in special}


def split_place(text: str, searched: Collection[str]) -> int:
    """The first place from which the rest of `text` may be the beginning of one of `searched`."""
    longest = max(map(len, searched), default=0)
    for place in range(max(0, len(text) - longest + 1), len(text)):
        if any(each.startswith(text[place:]) for each in searched):
            return place
    return len(text)


def thinking_marks(tokenizer: Any) -> tuple[str, str]:
    """The marks before and after thinking. Raises ValueError for a template that does not name two."""
    return read_thinking_marks(tokenizer.chat_template)


def opens_thinking(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends by opening thinking, as some templates do."""
    end: str = tokenizer.decode(list(prompt[-_LOOKED_AT:]), skip_special_tokens=False)
    return end.rstrip().endswith(thinking_marks(tokenizer)[0])


def find_thinking_end(tokenizer: Any, prompt: Sequence[int]) -> tuple[int, ...]:
    """The tokens that end the thinking which the prompt has opened; empty if it has opened none."""
    if not opens_thinking(tokenizer, prompt):
        return ()
    return tuple(tokenizer(thinking_marks(tokenizer)[1], add_special_tokens=False).input_ids)


def find_stop_tokens(tokenizer: Any, stop: Sequence[str]) -> frozenset[int]:
    """The tokens of stop texts that are single tokens, such as `<|im_end|>`: special tokens never become text."""
    added: dict[str, int] = tokenizer.get_added_vocab() if stop else {}
    return frozenset(added[text] for text in stop if text in added)
