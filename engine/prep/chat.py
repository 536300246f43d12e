"""Conversations to text, and which of its characters are trained. The text is the template's, byte for byte.

Labels come from prefix differences, for few templates mark what they generate: what the template adds when an
assistant turn is appended to the turns before it, up to and with the special token that ends the turn, is that turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.prep.formats.canonical import Canonical

Messages = list[dict[str, str]]


class Rendered(NamedTuple):
    """In characters of `text`, ascending: `spans` are the trained [start, end), `ends` where an end-of-turn token closes a turn."""

    text: str
    spans: list[tuple[int, int]]
    ends: list[int]
    special: bool
    """Whether the tokenizer still has to add its own special tokens: plain text yes, a rendered template no."""


class Refused(NamedTuple):
    """A row that this template cannot render so that its turns can be told apart."""

    reason: str


class Renderer:
    """Renders batches. `loss_on`: `assistant` trains the assistant's turns with their ends, `all` everything."""

    def __init__(self, tokenizer: Any, loss_on: str) -> None:
        self._tokenizer, self._loss_on = tokenizer, loss_on
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._turn_ends = tuple(special | ({tokenizer.eos_token} if tokenizer.eos_token else set()))

    def render(self, rows: Sequence[Canonical]) -> list[Rendered | Refused]:
        """One result a row, in order."""
        chats = [row["messages"] for row in rows if "messages" in row]
        done = iter(self._chats(chats))
        return [next(done) if "messages" in row else self._text(row["text"]) for row in rows]

    def _text(self, text: str) -> Rendered | Refused:
        if self._loss_on != "all":
            return Refused("plain text has no assistant turn: it needs method.loss_on: all")
        text += self._tokenizer.eos_token or ""
        return Rendered(text, [(0, len(text))], [len(text)] if self._tokenizer.eos_token else [], special=True)

    def _chats(self, chats: list[Messages]) -> list[Rendered | Refused]:
        turns = [
            (row, at) for row, chat in enumerate(chats) for at, turn in enumerate(chat) if turn["role"] == "assistant"
        ]
        whole = self._template(chats, opened=False)
        before = self._template([chats[row][:at] for row, at in turns], opened=True)
        last = [at == len(chats[row]) - 1 for row, at in turns]
        inner = iter(
            self._template(
                [chats[row][: at + 1] for (row, at), end in zip(turns, last, strict=True) if not end], opened=False
            )
        )
        pieces: list[list[tuple[str | Exception, str | Exception]]] = [[] for _ in chats]
        for (row, _), start, end in zip(turns, before, last, strict=True):
            pieces[row].append((start, whole[row] if end else next(inner)))
        return [self._spans(text, parts) for text, parts in zip(whole, pieces, strict=True)]

    def _spans(self, text: str | Exception, parts: list[tuple[str | Exception, str | Exception]]) -> Rendered | Refused:
        spans, ends = [], []
        for before, after in parts:
            failed = next((each for each in (text, before, after) if isinstance(each, Exception)), None)
            if failed:
                return Refused(f"the chat template refuses it: {failed}")
            assert isinstance(text, str) and isinstance(before, str) and isinstance(after, str)
            if not (text.startswith(after) and after.startswith(before)):
                return Refused(
                    "the chat template renders earlier turns differently once later ones follow: turns cannot be told apart"
                )
            turn = after[len(before) :].rstrip()
            closed = turn.endswith(self._turn_ends)
            end = len(before) + len(turn) if closed else len(after)
            spans.append((len(before), end))
            ends += [end] if closed else []
        assert isinstance(text, str)
        return Rendered(text, [(0, len(text))] if self._loss_on == "all" else spans, ends, special=False)

    def _template(self, chats: list[Messages], opened: bool) -> list[str | Exception]:
        """Each chat rendered; `opened` ends it where the assistant begins to speak. A template may refuse a chat by raising."""
        if not chats:
            return []
        try:
            texts: list[str | Exception] = self._tokenizer.apply_chat_template(
                chats, tokenize=False, add_generation_prompt=opened
            )
            return texts
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            return [error] if len(chats) == 1 else [self._template([chat], opened)[0] for chat in chats]
