"""From tokens to text that may be told: whole characters, thinking apart from the reply, and nothing of a text before which it ends.

What is told never changes, and all that is told is the finished reply: streamed and unstreamed text are made here, by the same steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.inference.replies import Growing
from engine.models.template_metadata import read_metadata

MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))
"""How models begin and end what they think before they reply: the first pair that stands in a template, else the first of all. A template of
ours names its own (`thinking: OPEN CLOSE`, see `engine.models.template_metadata`)."""
_LOOKED_AT = 32
"""Tokens at a prompt's end that may have opened a block of thinking."""


class Told(NamedTuple):
    """What has become certain with a token."""

    text: str = ""
    thinking: str = ""


@dataclass
class Detokenizer:
    """Turns growing ids into growing text, never half a character.

    A token may end inside a UTF-8 character, which decodes to U+FFFD, and may look different without its predecessor: so it
    decodes from a few tokens back, and holds back what ends in U+FFFD. Special tokens are no text, but those of `shown`.
    """

    tokenizer: Any
    ids: list[int] = field(default_factory=list)
    text: str = ""
    shown: Mapping[int, str] = field(default_factory=dict)
    _start: int = 0
    _told: int = 0

    def add(self, token: int) -> str:
        """The text that has become certain with this token."""
        self.ids.append(token)
        if token in self.shown:
            self._start = self._told = len(self.ids)
            self.text += self.shown[token]
            return self.shown[token]
        before = self._decode(self.ids[self._start : self._told])
        now = self._decode(self.ids[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start, self._told = self._told, len(self.ids)
        piece = now[len(before) :]
        self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Telling:
    """One reply, token by token. `text` and `thinking` are what has been told; `stopped`, whether one of the texts of `stop` has come.

    A block of thinking is one that the reply, or already the prompt, begins with; blanks around it belong to neither. Texts of `stop`
    count in the reply alone. Raises ValueError for a template that asks for what is not known.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.marks = marks(tokenizer)
        added: dict[str, int] = tokenizer.get_added_vocab()
        special = {*tokenizer.all_special_ids}
        shown = {added[mark]: mark for mark in self.marks if added.get(mark) in special}
        self._detokenizer = Detokenizer(tokenizer, shown=shown)
        self._growing = Growing(tokenizer)
        self._stop = tuple(stop)
        self._place = "thinking" if thinks(tokenizer, prompt) else "before"
        self._held = ""
        self.thinking = ""
        self.stopped = False

    @property
    def text(self) -> str:
        return self._growing.text

    @property
    def raw(self) -> str:
        """All that was decoded, marks and stop texts included."""
        return self._detokenizer.text

    def add(self, token: int) -> Told:
        """The next token. Nothing is told any more once it has `stopped`."""
        assert not self.stopped
        return self._sort(self._detokenizer.add(token))

    def finish(self) -> Told:
        """What was held back, at the end of the reply."""
        if self._place == "thinking":
            return Told(self._growing.finish(), self._think(self._held.rstrip()))
        text = ""
        if not self.stopped:
            text = self._reply()
        if not self.stopped:
            text += self._growing.add(self._held)
        return Told(text + self._growing.finish())

    def _sort(self, piece: str) -> Told:
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
                thought, self._place, self._held = self._think(inside.rstrip()), "after", after
            else:
                certain = self._held[: held_from(self._held, (closing,))].rstrip()
                thought, self._held = self._think(certain), self._held[len(certain) :]
        if self._place == "after":
            self._held = self._held.lstrip()
            self._place = "reply" if self._held else "after"
        return Told(self._reply() if self._place == "reply" else "", thought)

    def _think(self, text: str) -> str:
        """Blanks at the end are held back by the caller: they count when something follows."""
        text = text if self.thinking else text.lstrip()
        self.thinking += text
        return text

    def _reply(self) -> str:
        found = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        certain = min(found)[1] if found else held_from(self._held, self._stop)  # the one that is whole first
        piece, self._held = self._held[:certain], self._held[certain:]
        self.stopped = bool(found)
        return self._growing.add(piece) if piece else ""


def held_from(text: str, wanted: Collection[str]) -> int:
    """The first place from which the rest of `text` may be the beginning of one of `wanted`."""
    longest = max(map(len, wanted), default=0)
    for place in range(max(0, len(text) - longest + 1), len(text)):
        if any(each.startswith(text[place:]) for each in wanted):
            return place
    return len(text)


def marks(tokenizer: Any) -> tuple[str, str]:
    """What stands before and behind thinking."""
    template = tokenizer.chat_template
    if named := read_metadata(template).get("thinking", "").split():
        if len(named) != 2:
            raise ValueError(f"the chat template's `thinking:` names {len(named)} marks, not one before and one behind")
        return named[0], named[1]
    return next((pair for pair in MARKS if isinstance(template, str) and pair[1] in template), MARKS[0])


def thinks(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends in a block of thinking that it has opened: some templates do."""
    end: str = tokenizer.decode(list(prompt[-_LOOKED_AT:]), skip_special_tokens=False)
    return end.rstrip().endswith(marks(tokenizer)[0])


def behind_thinking(tokenizer: Any, prompt: Sequence[int]) -> tuple[int, ...]:
    """The tokens that end the thinking which the prompt has opened; none when it has not."""
    if not thinks(tokenizer, prompt):
        return ()
    return tuple(tokenizer(marks(tokenizer)[1], add_special_tokens=False).input_ids)


def stop_tokens(tokenizer: Any, stop: Sequence[str]) -> frozenset[int]:
    """Texts of `stop` that are tokens of their own, as `<|im_end|>` is: special ones never become text."""
    added: dict[str, int] = tokenizer.get_added_vocab() if stop else {}
    return frozenset(added[text] for text in stop if text in added)
