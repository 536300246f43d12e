"""Renders conversations with the chat template and finds which characters are trained.

Few templates mark the assistant's turns, so the spans come from prefix differences: the text that the template adds
when an assistant turn is appended, up to and including the special token that ends it, is that turn. Tool calls are
part of their turn. A turn of `weight` 0 is not trained.

Most conversations are rendered only once. For each sequence of roles the template's own text is learnt from a
conversation with marker contents (`Skeleton`); a conversation whose text equals that skeleton with its own contents has
its spans too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.models.template_metadata import read_metadata
from engine.prep.formats.canonical import Canonical, Message, describe_kind, kind_of

Messages = list[Message]

_PLAIN = {"role", "content"}
_SKELETONS = 1000
"""Skeletons kept at most: a data set has few sequences of roles, but this is not guaranteed."""


class RenderedRow(NamedTuple):
    """A row's text. In characters, ascending: `spans` are the trained [start, end), `ends` the positions behind
    end-of-turn tokens."""

    text: str
    spans: list[tuple[int, int]]
    ends: list[int]
    special: bool
    """Whether the tokenizer must still add its special tokens: yes for plain text, no for a rendered template."""


class Refusal(NamedTuple):
    """Why a row is left out: the template cannot render it so that its turns can be separated, or another method
    trains on it."""

    reason: str


METHODS = {"pairs": "dpo, orpo or reward", "judged": "kto", "tokens": "sft"}
"""Kind of rows -> the methods that train on them, in words."""


def refuse_misfit(row: Canonical) -> Refusal:
    """The refusal of a row by a method that trains on another kind of rows."""
    return Refusal(f"these are {describe_kind(row)}: they train with method.kind {METHODS[kind_of(row)]}")


Text = str | Exception
"""The text that a template renders, or the exception that it raises."""


class Renderer:
    """Renders batches. With `loss_on` `assistant` the assistant's turns and their ends are trained, with `all`
    everything."""

    def __init__(self, tokenizer: Any, loss_on: str) -> None:
        self._tokenizer, self._loss_on = tokenizer, loss_on
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        ends = special | ({tokenizer.eos_token} if tokenizer.eos_token else set())
        self._turn_ends = tuple(sorted(ends, key=lambda each: (-len(each), each)))
        self._skeletons: dict[tuple[str, ...], Skeleton | None] = {}
        self._template_text = json.dumps(tokenizer.chat_template)
        self._declared = read_metadata(tokenizer.chat_template)
        self._last_only = self._declared.get("trained") == "last"
        self.unwritten: Counter[str] = Counter()
        """Rows with `tools` or `tool_calls` that the template does not render, so that the model does not see them."""

    def render(self, rows: Sequence[Canonical]) -> list[RenderedRow | Refusal]:
        """One result per row, in order."""
        chats = iter(self._render_chats([row for row in rows if "messages" in row]))
        return [next(chats) if "messages" in row else self._render_text(row) for row in rows]

    def render_prompts(self, rows: Sequence[Canonical]) -> list[str | Refusal]:
        """The text of each conversation with the generation prompt behind it."""
        texts = self._apply_template(
            [row["messages"] for row in rows], [row.get("tools") for row in rows], generation_prompt=True
        )
        for row in rows:
            self._count_unwritten(row)
        return [text if isinstance(text, str) else Refusal(f"the chat template refuses it: {text}") for text in texts]

    def _render_text(self, row: Canonical) -> RenderedRow | Refusal:
        if kind_of(row) != "tokens":
            return refuse_misfit(row)
        if self._loss_on != "all":
            return Refusal("plain text has no assistant turn: it needs method.loss_on: all")
        opening = self._declared.get("text", "")
        text = opening + row["text"] + (self._tokenizer.eos_token or "")
        ends = [len(text)] if self._tokenizer.eos_token else []
        return RenderedRow(text, [(len(opening), len(text))], ends, special=not opening)

    # ── one rendering a row ────────────────────────────────────────────────────────────────────────────────────────

    def _render_chats(self, rows: list[Canonical]) -> list[RenderedRow | Refusal]:
        done: list[RenderedRow | Refusal | None] = []
        texts = self._apply_template(
            [row["messages"] for row in rows], [row.get("tools") for row in rows], generation_prompt=False
        )
        for row, text in zip(rows, texts, strict=True):
            self._count_unwritten(row)
            skeleton = self._skeleton(row) if isinstance(text, str) else None
            done.append(skeleton.fit(text, row["messages"]) if skeleton and isinstance(text, str) else None)
        left = [at for at, result in enumerate(done) if result is None]
        worked_out = iter(self._work_out([rows[at] for at in left], [texts[at] for at in left]))
        return [self._widen(next(worked_out) if result is None else result) for result in done]

    def _widen(self, result: RenderedRow | Refusal) -> RenderedRow | Refusal:
        if self._loss_on != "all" or isinstance(result, Refusal):
            return result
        if self._declared.get("context") == "both ways":
            return Refusal("the model reads what precedes a reply both ways: train with method.loss_on: assistant")
        return result._replace(spans=[(0, len(result.text))])

    def _skeleton(self, row: Canonical) -> Skeleton | None:
        """The skeleton for the row's roles; None for rows with more than text."""
        if "tools" in row or not all(message.keys() == _PLAIN for message in row["messages"]):
            return None
        roles = tuple(message["role"] for message in row["messages"])
        if roles not in self._skeletons:
            if len(self._skeletons) == _SKELETONS:
                self._skeletons.clear()
            self._skeletons[roles] = self._find_skeleton(roles)
        return self._skeletons[roles]

    def _find_skeleton(self, roles: tuple[str, ...]) -> Skeleton | None:
        marks = [f"qz{number}xv" for number in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        (text,) = self._apply_template([messages], [None], generation_prompt=False)
        (result,) = self._work_out([{"messages": messages}], [text])
        if isinstance(result, Refusal) or len(result.ends) != len(result.spans):
            return None  # without an end token, the end of a turn depends on its content
        return Skeleton.cut(result, marks)

    def _count_unwritten(self, row: Canonical) -> None:
        if "tools" in row and "tools" not in self._template_text:
            self.unwritten["tools"] += 1
        if "tool_calls" not in self._template_text and any("tool_calls" in message for message in row["messages"]):
            self.unwritten["tool_calls"] += 1

    # ── prefix differences ─────────────────────────────────────────────────────────────────────────────────────────

    def _work_out(self, rows: list[Canonical], whole: list[Text]) -> list[RenderedRow | Refusal]:
        chats, tools = [row["messages"] for row in rows], [row.get("tools") for row in rows]
        turns = [
            (row, at)
            for row, chat in enumerate(chats)
            for at, turn in enumerate(chat)
            if turn["role"] == "assistant" and turn.get("weight") != 0 and (not self._last_only or at == len(chat) - 1)
        ]
        inner = [(row, at) for row, at in turns if at < len(chats[row]) - 1]
        before = self._apply_template(
            [chats[row][:at] for row, at in turns], [tools[row] for row, _ in turns], generation_prompt=True
        )
        after = self._apply_template(
            [chats[row][: at + 1] for row, at in inner], [tools[row] for row, _ in inner], generation_prompt=False
        )
        ends = dict(zip(inner, after, strict=True))
        pieces: list[list[_Turn]] = [[] for _ in chats]
        for (row, at), start in zip(turns, before, strict=True):
            pieces[row].append(_Turn(start, ends.get((row, at), whole[row]), chats[row][at]))
        return [self._find_spans(text, parts) for text, parts in zip(whole, pieces, strict=True)]

    def _find_spans(self, text: Text, turns: list[_Turn]) -> RenderedRow | Refusal:
        spans, ends = [], []
        for turn in turns:
            failed = next((each for each in (text, turn.before, turn.after) if isinstance(each, Exception)), None)
            if failed:
                return Refusal(f"the chat template refuses it: {failed}")
            assert isinstance(text, str) and isinstance(turn.before, str) and isinstance(turn.after, str)
            start = len(turn.before)
            if text.startswith(turn.after) and turn.after.startswith(turn.before):
                reply = turn.after[start:].rstrip()
                closed = reply.endswith(self._turn_ends)
                end = start + len(reply) if closed else len(turn.after)
            elif turn.after == text:
                return Refusal(
                    "the chat template renders earlier turns differently once the reply follows "
                    f"(it opens one with {turn.before[-30:]!r}): training and chat would differ"
                )
            else:
                (start, end), closed = self._find_turn(text, turn), True
            if not end:
                return Refusal(
                    "the chat template renders earlier turns differently once later ones follow: "
                    "turns cannot be separated"
                )
            spans.append((start, end))
            ends += [end] if closed else []
        if isinstance(text, Exception):
            return Refusal(f"the chat template refuses it: {text}")
        if self._last_only and self._loss_on != "all" and not turns:
            return Refusal("the chat template trains the last turn alone, and that turn is not a reply")
        return RenderedRow(text, spans, ends, special=False)

    def _find_turn(self, text: str, turn: _Turn) -> tuple[int, int]:
        """The span in `text` of a turn that is rendered differently when it is the last one; (0, 0) if it cannot be
        found.

        Templates drop thoughts, empty ones included, once a question follows, and may close the last turn with a
        different token. So the end of the turn's own rendering, at least its words, must occur in the text, with an end
        token behind it.
        """
        assert isinstance(turn.before, str) and isinstance(turn.after, str)
        start = _common_prefix(
            turn.before, text
        )  # shorter than `before` if that opens a thought which is dropped later
        reply, rest = turn.after[start:].rstrip(), text[start:]
        close = self._ending_token(reply)
        body = reply.removesuffix(close).rstrip() if close else ""
        words = [
            turn.message["content"].strip(),
            *(call["function"]["name"] for call in turn.message.get("tool_calls", ())),
        ]
        last = min((body.rfind(word) for word in words if word in body), default=len(body) - 1)
        at = next((at for at in range(last + 1) if rest.startswith(body[at:])), None)
        if at is None:
            return 0, 0
        end = start + len(body) - at
        behind = text[end:].lstrip()
        token = next((each for each in self._turn_ends if behind.startswith(each)), "")
        closed = (start, len(text) - len(behind) + len(token))
        if token == close:
            return closed
        if self._ending_token(body):  # that token ends a conversation, not a turn
            return start, end
        # A different token ends the turn only if another turn is opened behind it; otherwise it may be that opening
        # itself. Some templates declare that it is both.
        ends_turn = "ends" in self._declared or behind[len(token) :].lstrip().startswith(self._turn_ends)
        return closed if token and ends_turn else (0, 0)

    def _ending_token(self, text: str) -> str:
        """The special token at the end of the text; empty if there is none."""
        return next((each for each in self._turn_ends if text.endswith(each)), "")

    def _apply_template(self, chats: list[Messages], tools: list[Any], generation_prompt: bool) -> list[Text]:
        """Each chat rendered; `generation_prompt` appends that. Chats with the same tools are rendered together."""
        groups: dict[str, list[int]] = {}
        for at, each in enumerate(tools):
            groups.setdefault(json.dumps(each) if each else "", []).append(at)
        done: dict[int, Text] = {}
        for group in groups.values():
            done.update(
                zip(
                    group,
                    self._apply_to_batch([chats[at] for at in group], tools[group[0]], generation_prompt),
                    strict=True,
                )
            )
        return [done[at] for at in range(len(chats))]

    def _apply_to_batch(self, chats: list[Messages], tools: Any, generation_prompt: bool) -> list[Text]:
        """A template refuses a chat by raising an exception: then each chat is rendered alone."""
        try:
            texts: list[Text] = self._tokenizer.apply_chat_template(
                chats, tools=tools, tokenize=False, add_generation_prompt=generation_prompt
            )
            return texts
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            return (
                [error]
                if len(chats) == 1
                else [self._apply_to_batch([chat], tools, generation_prompt)[0] for chat in chats]
            )


class _Turn(NamedTuple):
    """An assistant's turn: the text rendered before it, with the assistant's header, and the text up to its end."""

    before: Text
    after: Text
    message: Message


def _common_prefix(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    same = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(same, min(len(one), len(other)))


class Skeleton(NamedTuple):
    """The template's own text around the contents of a conversation: `literals` has one item more than there are
    contents.

    A position in the text is (number of contents before it, characters behind the last of them).
    """

    literals: list[str]
    spans: list[tuple[tuple[int, int], tuple[int, int]]]
    ends: list[tuple[int, int]]

    @classmethod
    def cut(cls, rendered: RenderedRow, marks: list[str]) -> Skeleton | None:
        """The skeleton of a conversation whose contents are `marks`; None unless each occurs exactly once, in order."""
        literals, behind, at = [], [0], 0
        for mark in marks:
            found = rendered.text.find(mark, at)
            if found < 0 or rendered.text.count(mark) != 1:
                return None
            literals.append(rendered.text[at:found])
            at = found + len(mark)
            behind.append(at)
        literals.append(rendered.text[at:])

        def place(position: int) -> tuple[int, int]:
            contents = max(number for number, end in enumerate(behind) if end <= position)
            return contents, position - behind[contents]

        ends = [place(end) for end in rendered.ends]
        return cls(literals, [(place(start), place(end)) for start, end in rendered.spans], ends)

    def fit(self, text: str, messages: Messages) -> RenderedRow | None:
        """The spans of a conversation with the same roles; None if its text is not the skeleton filled with its
        contents."""
        parts, behind, at = [self.literals[0]], [0], len(self.literals[0])
        for message, literal in zip(messages, self.literals[1:], strict=True):
            at += len(message["content"])
            behind.append(at)
            at += len(literal)
            parts += (message["content"], literal)
        if "".join(parts) != text:
            return None
        spans = [(behind[first] + start, behind[last] + end) for (first, start), (last, end) in self.spans]
        return RenderedRow(text, spans, [behind[number] + end for number, end in self.ends], special=False)
