"""Finds the text of an assistant's turn: the prompt that chat would send to get it, and the reply as a model writes it.

The prompt is what the template renders of the turns before, with the generation prompt. The reply is what the template
then writes for the turn itself, up to and including the special tokens that end it. Tool calls are part of the turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from engine.models.chat_template import (
    CLOSE,
    OPEN,
    THOUGHT_KEYS,
    ThoughtStyle,
    find_reply_ends,
    find_thoughts,
    render,
    split_closing,
    split_thought,
)
from engine.models.template_metadata import read_metadata
from engine.prep.formats.canonical import Canonical, Message
from engine.prep.rendered import Refusal

_PROBE = "\ue0f0"
_EMPTY_THOUGHT = re.compile(rf"\s*{OPEN}\s*{CLOSE}\s*")
_BEGUN = re.compile(r"[<\[][^\s<>\[\]]*$")
"""A mark such as `<|end|>` that has begun."""
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
"""Characters of no script, which the templates of `engine.models.glm` write for their tokenizers to take out."""
_WORD = re.compile(r"[A-Za-z0-9]+")


class Reply(NamedTuple):
    """An assistant's turn behind its prompt, as a sequence of its own."""

    prompt: str
    text: str
    """The reply with the tokens that end it."""
    closing: str
    """The special tokens at its end; empty if nothing ends it."""
    rest: str
    """What the template writes behind these tokens."""
    appended: str
    """The part of `closing` that the template writes only when another turn follows."""
    written: bool
    """Whether the template renders the conversation up to this turn as `prompt + text + rest`, but for `appended`."""
    thought_left_out: bool
    """Whether the turn has a thought that is not in the text."""


class ReplyFinder:
    """Finds replies by rendering with `tokenizer`, whose template treats thoughts as `thoughts` says."""

    def __init__(self, tokenizer: Any, thinking: str) -> None:
        self._tokenizer, self._thinking = tokenizer, thinking
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        ends = special | ({tokenizer.eos_token} if tokenizer.eos_token else set())
        self.special = tuple(sorted(ends, key=lambda each: (-len(each), each)))
        self.thoughts: ThoughtStyle = find_thoughts(tokenizer)
        declared = read_metadata(tokenizer.chat_template)
        self.others = tuple(declared.get("ends", "").split())
        """Tokens that open another's turn and so end a reply."""
        self._header = self._find_header()
        self._ends = find_reply_ends(tokenizer, self.special)
        self._call_ends = find_reply_ends(tokenizer, self.special, calls=True)
        self._appends = not declared

    # ── what the template writes ───────────────────────────────────────────────────────────────────────────────────

    def _find_header(self) -> str:
        """The generation prompt without a thought that it opens; empty where the template refuses the trial."""
        question = {"role": "user", "content": "qz1xv"}
        try:
            asked = render(self._tokenizer, [question], reply_follows=False)
            prompt = render(self._tokenizer, [question], reply_follows=True)
        except Exception:  # noqa: BLE001 - templates raise what they like
            return ""
        return prompt[_common_prefix(prompt, asked) :].removesuffix(self.thoughts.opening)

    def _split_closing(self, text: str) -> tuple[str, str]:
        """The special tokens that end a reply with `text`, and what stands behind them. A template may write more
        behind the last reply of a conversation, which the model never has to say."""
        after = self._ends.closing + self._ends.rest.rstrip()
        body = text.rstrip()
        if self._ends.closing and body.endswith(after):
            return self._ends.closing, text[len(body) - len(after) + len(self._ends.closing) :]
        return split_closing(text, self.special)

    # ── one turn ───────────────────────────────────────────────────────────────────────────────────────────────────

    def move_thoughts(self, messages: list[Message]) -> list[Message]:
        """The messages as the template expects thoughts: in a key of their own, if it writes that."""
        key = self.thoughts.key
        if not key:
            return messages
        moved = []
        for message in messages:
            thought, words = split_thought(message["content"]) if self.thoughts.moved else (None, "")
            other = next((each for each in THOUGHT_KEYS if each != key and isinstance(message.get(each), str)), None)
            if message["role"] == "assistant" and thought is not None and not message.get(key):
                message = {**message, "content": words, key: thought}
            elif message["role"] == "assistant" and other and not message.get(key):
                message = {**message, key: message[other]}
            moved.append(message)
        return moved

    def find(self, row: Canonical, at: int) -> Reply | Refusal:
        """The reply that is the turn `at` of the row. A `Refusal` has the template's own reason."""
        messages, tools = row["messages"], row.get("tools")
        message: Message = messages[at]
        try:
            written = render(self._tokenizer, messages[: at + 1], tools, reply_follows=False)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            return Refusal(f"the chat template refuses it: {error}")
        try:
            prompt = render(self._tokenizer, messages[:at], tools, reply_follows=True)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            start = self.find_start(written, row, at)
            if start is None and not at:
                return Refusal("it begins with the assistant, and the chat template opens no reply there")
            if start is None:
                return Refusal(f"the chat template refuses the turns before turn {at + 1}: {error}")
            prompt = written[:start]
        thought, words = find_thought(message)
        if self._thinking == "require" and self.thoughts.opens and not thought:
            return Refusal(f"turn {at + 1} has no thought, which data.thinking requires")
        tail, is_written = self._find_tail(row, at, prompt, written, thought)
        if tail is None:
            return Refusal(f"the chat template writes turn {at + 1} into earlier turns: chat could not ask for it")
        if missing := find_missing(message, words, tail):
            return Refusal(f"the chat template leaves out {missing} of turn {at + 1}")
        closing, rest = self._split_closing(tail)
        ends = self._call_ends if message.get("tool_calls") else self._ends
        appended = ends.opening if self._appends and not closing else ""
        text = tail[: len(tail) - len(rest)] if closing else tail.rstrip() if appended else tail
        left_out = bool(thought) and not contains(tail, str(thought))
        rest = rest if closing else ""
        return Reply(prompt, text + appended, closing or appended, rest, appended, is_written, left_out)

    def _find_tail(
        self, row: Canonical, at: int, prompt: str, written: str, thought: str | None
    ) -> tuple[str | None, bool]:
        """What follows the prompt, and whether the template renders both in this way."""
        opening = self.thoughts.opening
        if written.startswith(prompt):
            tail = written[len(prompt) :]
            if not opening or not thought or contains(tail, thought):
                return tail, True
        bare = self._render_bare(row, at)
        if bare is None:
            return None, False
        if opening and (thought or self._thinking != "keep"):
            head = prompt.removesuffix(opening) if self.thoughts.opens else prompt
            if bare.startswith(head):
                words = _EMPTY_THOUGHT.sub("", bare[len(head) :], count=1)
                lead = "" if self.thoughts.opens else opening
                return lead + (thought or "") + self.thoughts.closing + words, False
        if bare.startswith(prompt):  # chat closes an empty thought, so a thought has no place
            return bare[len(prompt) :], bare == written
        return self._transplant(row, at, written), False

    def _render_bare(self, row: Canonical, at: int) -> str | None:
        """The conversation up to this turn, which loses its thought."""
        message = {key: value for key, value in row["messages"][at].items() if key not in THOUGHT_KEYS}
        message["content"] = find_thought(row["messages"][at])[1]
        try:
            return render(self._tokenizer, [*row["messages"][:at], message], row.get("tools"), reply_follows=False)
        except Exception:  # noqa: BLE001 - templates raise what they like
            return None

    def _transplant(self, row: Canonical, at: int, written: str) -> str | None:
        """The reply as the template writes it, without the turns before; None where it cannot be told from them."""
        start = self.find_start(written, row, at)
        if start is None:
            try:
                before = render(self._tokenizer, row["messages"][:at], row.get("tools"), reply_follows=False)
            except Exception:  # noqa: BLE001 - templates raise what they like
                return None
            start = _common_prefix(before, written)
            if mark := _BEGUN.search(written, 0, start):  # both go on with a mark, but not with the same one
                start = mark.start()
        tail = written[start:].lstrip()
        words = row["messages"][at - 1]["content"].strip() if at else ""
        return None if words and words in tail else tail

    def find_start(self, text: str, row: Canonical, at: int) -> int | None:
        """Where the turn `at` begins in `text`, which ends with it: behind the generation prompt; None if that is not
        there."""
        place = self._find_words(text, row, at)
        if place is None or not self._header:
            return None
        found = text.rfind(self._header, 0, place)
        before = row["messages"][at - 1]["content"].strip() if at else ""
        if found < 0 or (before and before in text[found + len(self._header) : place]):
            return None
        return found + len(self._header)

    def find_in_history(self, row: Canonical, at: int, whole: str) -> tuple[int, int, bool] | None:
        """Start and end of a turn's words and its end-of-turn token as they stand in the whole conversation, and
        whether there is such a token; None if they cannot be told apart. Turns with tool calls cannot."""
        messages, message = row["messages"], row["messages"][at]
        if message.get("tool_calls") or not self._header:
            return None
        marked = [*messages[:at], {**message, "content": _PROBE}, *messages[at + 1 :]]
        try:
            other = render(self._tokenizer, marked, row.get("tools"), reply_follows=False)
        except Exception:  # noqa: BLE001 - templates raise what they like
            return None
        first, last = _common_prefix(whole, other), _common_prefix(whole[::-1], other[::-1])
        end = len(whole) - last
        _, words = find_thought(message)
        start = whole.rfind(self._header, 0, first) + len(self._header)
        before = messages[at - 1]["content"].strip() if at else ""
        if start < len(self._header) or not contains(whole[first:end], words):
            return None
        if before and before in whole[start:first]:
            return None
        behind = whole[end:].lstrip()
        token = next((each for each in self.special if behind.startswith(each)), "")
        return start, len(whole) - len(behind) + len(token) if token else end, bool(token)

    def _find_words(self, text: str, row: Canonical, at: int) -> int | None:
        """Where the words of the turn `at` begin in `text`, which is the conversation up to this turn."""
        marked = {**row["messages"][at], "content": _PROBE}
        try:
            other = render(self._tokenizer, [*row["messages"][:at], marked], row.get("tools"), reply_follows=False)
        except Exception:  # noqa: BLE001 - templates raise what they like
            return None
        return _common_prefix(text, other) if _PROBE in other else None


# ── words ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_thought(message: Message) -> tuple[str | None, str]:
    """The thought of a message, in a key of its own or at the beginning of its content, and the words."""
    kept = next((message[key] for key in THOUGHT_KEYS if isinstance(message.get(key), str)), None)
    if kept:
        return kept, message["content"]
    return split_thought(message["content"])


def find_missing(message: Message, words: str, text: str) -> str:
    """What of a turn does not stand in the text that is trained for it, in words for a message; empty if nothing."""
    if not contains(text, words):
        return "words"
    for call in message.get("tool_calls") or ():
        function = call["function"]
        if function["name"] not in text:
            return "a tool call"
        written = set(_WORD.findall(text))
        if any(not written >= set(_WORD.findall(leaf)) for leaf in _leaves(function.get("arguments"))):
            return "the arguments of a tool call"
    return ""


def contains(text: str, words: str) -> bool:
    """Whether the words stand in the text, but for blanks and what templates break special tokens with; possibly as
    JSON writes them."""
    squeezed = _squeeze(text)
    return any(_squeeze(form) in squeezed for form in (words, json.dumps(words)[1:-1]))


def _squeeze(text: str) -> str:
    return "".join(_NONCHARACTERS.sub("", text).split())


def _leaves(value: Any) -> Iterator[str]:
    """The texts and whole numbers in a tool call's arguments. Templates write other values in various ways."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str):
        if value.isascii() and "\\" not in value and value.isprintable():
            yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def _common_prefix(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    same = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(same, min(len(one), len(other)))
