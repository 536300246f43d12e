"""Renders canonical rows with the chat template and finds which characters are trained.

Three means, tried in this order:

1. The template marks the assistant's turns itself (`{% generation %}`).
2. The whole conversation is one sequence, if every turn that is trained stands in it as chat would have it: behind the
   prompt that chat sends, in the bytes that the template writes for it as the last turn.
3. The conversation is unrolled into several sequences. Each ends with a reply and is what chat sends at that moment,
   with the reply. A sequence also trains those earlier replies that keep their bytes in it, so that every reply is
   trained exactly once. Templates that drop thoughts from earlier turns are rendered in this way.

A turn of `weight` 0 is not trained. Each row is rendered for itself: a row alone gives what it gives in any batch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.models.chat_template import OPEN, adapt_template, render, writes_calls
from engine.models.template_metadata import read_metadata
from engine.prep.formats.canonical import Canonical, kind_of
from engine.prep.rendered import Means, Refusal, RenderedRow, Rendering, check_spans, refuse_misfit
from engine.prep.reply_finder import Reply, ReplyFinder, contains, find_missing, find_thought
from engine.prep.skeletons import Skeleton
from engine.prep.templates import ChatTokenizer

_PLAIN = {"role", "content"}
_SKELETONS = 1000
"""Skeletons kept at most: a data set has few sequences of roles, but this is not guaranteed."""
_MARKS = re.compile(r"\{%-?\s*generation\b")


class _Sequence(NamedTuple):
    """A sequence before it is checked: `rendered` ends with message `through`, exclusive."""

    rendered: RenderedRow
    through: int
    appended: str
    written: bool
    """Whether `rendered` is what the template renders of these messages, but for `appended`."""


class _Plan(NamedTuple):
    """How conversations with certain roles are rendered: for each sequence the number of its messages."""

    sequences: list[tuple[int, Skeleton]]
    means: Means


class Renderer:
    """Renders rows. With `loss_on` `assistant` the assistant's turns and their ends are trained, with `all` everything.
    `turns` and `thinking` are `data.turns` and `data.thinking`."""

    def __init__(self, tokenizer: Any, loss_on: str, turns: str = "auto", thinking: str = "keep") -> None:
        chat = ChatTokenizer.of(tokenizer)
        self._tokenizer = chat.with_template(adapt_template(chat, thinking))
        self._loss_on, self._turns = loss_on, turns
        self.template = self._tokenizer.chat_template
        self._declared = read_metadata(self.template)
        self._last_only = self._declared.get("trained") == "last"
        self._finder = ReplyFinder(self._tokenizer, thinking)
        self._marked = bool(_MARKS.search(json.dumps(self.template)))
        self._plans: dict[tuple[str, ...], _Plan | None] = {}
        self._template_text = json.dumps(self.template)
        self.unwritten: Counter[str] = Counter()
        """Rows with `tools`, `tool_calls` or `thoughts` that the template does not render, so that the model does not
        see them."""

    def render(self, rows: Sequence[Canonical]) -> list[Rendering | Refusal]:
        """One result per row, in order."""
        return [self._render_chat(row) if "messages" in row else self._render_text(row) for row in rows]

    def render_prompts(self, rows: Sequence[Canonical]) -> list[str | Refusal]:
        """The text of each conversation with the generation prompt behind it."""
        return [self._render_prompt(row) for row in rows]

    def render_reply(self, prompt: Canonical, replies: list[dict[str, Any]]) -> tuple[RenderedRow, int] | Refusal:
        """The prompt with its replies as one sequence, and where the first of these begins. Only the ends of the
        replies are found, no spans."""
        row = self._adapt({**prompt, "messages": [*prompt["messages"], *replies]})
        first, last = len(prompt["messages"]), len(row["messages"]) - 1
        reply = self._finder.find(row, last)
        if isinstance(reply, Refusal):
            return reply
        self._count_unwritten(row, reply.thought_left_out)
        text = reply.prompt + reply.text + reply.rest
        if first == last:
            start = len(reply.prompt)
        else:
            opening = self._render_prompt({**prompt, "messages": row["messages"][:first]})
            if isinstance(opening, Refusal):
                return opening
            if not text.startswith(opening):
                return Refusal("the chat template renders the prompt differently once several replies follow")
            start = len(opening)
        ends = [len(reply.prompt + reply.text)] if reply.closing else []
        return RenderedRow(text, [], ends, special=False), start

    # ── text ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _render_text(self, row: Canonical) -> Rendering | Refusal:
        if kind_of(row) != "tokens":
            return refuse_misfit(row)
        if self._loss_on != "all":
            return Refusal("plain text has no assistant turn: it needs method.loss_on: all")
        opening = self._declared.get("text", "")
        text, end, added = row["text"], self._tokenizer.eos_token or "", self._tokenizer.added
        if not opening and added.begin:
            text = text.removeprefix(added.begin)
        if not opening and added.ends(end):
            text, end = text.removesuffix(end), ""
        elif end and text.rstrip().endswith(end):
            end = ""
        whole = opening + text + end
        closed = whole.rstrip().endswith(self._tokenizer.eos_token or "\0") or added.ends(self._tokenizer.eos_token)
        if len(whole) == len(opening):
            return Refusal("the text is empty")
        ends = [len(whole.rstrip())] if closed and whole.strip() else []
        sequence = RenderedRow(whole, [(len(opening), len(whole))], ends, special=not opening)
        return Rendering([check_spans(sequence)], "text")

    # ── conversations ──────────────────────────────────────────────────────────────────────────────────────────────

    def _adapt(self, row: Canonical) -> Canonical:
        return {**row, "messages": self._finder.move_thoughts(row["messages"])}

    def _render_prompt(self, row: Canonical) -> str | Refusal:
        row = self._adapt(row)
        try:
            text = render(self._tokenizer, row["messages"], row.get("tools"), reply_follows=True)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            return Refusal(f"the chat template refuses it: {error}")
        self._count_unwritten(row)
        return text

    def _render_chat(self, row: Canonical) -> Rendering | Refusal:
        row = self._adapt(row)
        found = self._render_by_plan(row) or self._work_out(row)
        if isinstance(found, Refusal):
            return found
        rendering, _ = found
        self._count_unwritten(row, rendering.thoughts_left_out)
        for sequence in rendering.sequences:
            check_spans(sequence)
        return rendering

    def _count_unwritten(self, row: Canonical, thought: bool = False) -> None:
        if thought:
            self.unwritten["thoughts"] += 1
        if "tools" in row and "tools" not in self._template_text:
            self.unwritten["tools"] += 1
        if "tool_calls" not in self._template_text and any("tool_calls" in message for message in row["messages"]):
            self.unwritten["tool_calls"] += 1

    def _work_out(self, row: Canonical) -> tuple[Rendering, list[_Sequence]] | Refusal:
        """The row's sequences, by rendering each of its turns."""
        messages = row["messages"]
        try:
            whole = render(self._tokenizer, messages, row.get("tools"), reply_follows=False)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            return Refusal(f"the chat template refuses it: {error}")
        if self._loss_on == "all":
            return self._train_all(row, whole)
        turns = [
            at
            for at, turn in enumerate(messages)
            if turn["role"] == "assistant" and turn.get("weight") != 0 and not (self._last_only and messages[at + 1 :])
        ]
        if not turns:
            if self._last_only:
                return Refusal("the chat template trains the last turn alone, and that turn is not a reply")
            return Rendering([RenderedRow(whole, [], [], special=False)], "together"), []
        if self._marked and (marked := self._find_marked(row, whole)):
            return marked
        replies: dict[int, Reply] = {}
        for at in turns:
            reply = self._finder.find(row, at)
            if isinstance(reply, Refusal):
                return reply
            replies[at] = reply
        sequences = self._group(whole, len(messages), replies)
        if self._turns == "together" and len(sequences) > 1:
            located = self._locate(row, whole, replies)
            if isinstance(located, Refusal):
                return located
            sequences = [located]
        text = sequences[0].rendered.text.removesuffix(sequences[0].appended)
        together = len(sequences) == 1 and text.rstrip() == whole.rstrip()
        left_out = any(reply.thought_left_out for reply in replies.values())
        means: Means = "together" if together else "unrolled"
        return Rendering([each.rendered for each in sequences], means, left_out), sequences

    def _train_all(self, row: Canonical, whole: str) -> tuple[Rendering, list[_Sequence]] | Refusal:
        if self._declared.get("context") == "both ways":
            return Refusal("the model reads what precedes a reply both ways: train with method.loss_on: assistant")
        for at, message in enumerate(row["messages"]):
            if message["role"] == "assistant" and (missing := find_missing(message, find_thought(message)[1], whole)):
                return Refusal(f"the chat template leaves out {missing} of turn {at + 1}")
        body = whole.rstrip()
        ends = [len(body)] if body.endswith(self._finder.special) else []
        sequence = _Sequence(RenderedRow(whole, [(0, len(whole))], ends, False), len(row["messages"]), "", written=True)
        return Rendering([sequence.rendered], "together"), [sequence]

    # ── one or several sequences ───────────────────────────────────────────────────────────────────────────────────

    def _group(self, whole: str, count: int, replies: dict[int, Reply]) -> list[_Sequence]:
        """Sequences that train every reply once, in as few sequences as keep the replies' bytes."""
        left = sorted(replies)
        sequences: list[_Sequence] = []
        while left:
            last = left[-1]
            reply = replies[last]
            own = reply.prompt + reply.text + reply.rest
            text, through = own, last + 1
            if not sequences and self._turns != "unrolled" and self._place(reply, whole):
                text, through = whole, count
            appended = ""
            if through == last + 1 and reply.appended:
                text, appended = reply.prompt + reply.text, reply.appended
            spans, ends, kept = [], [], []
            for at in left if self._turns != "unrolled" else [last]:
                if place := self._place(replies[at], text):
                    start, end, closed = place
                    spans.append((start, end))
                    ends += [end] if closed else []
                    kept.append(at)
            assert last in kept, f"a reply is not in its own sequence: {reply!r}"
            rendered = RenderedRow(text, spans, ends, special=False)
            sequences.append(_Sequence(rendered, through, appended, reply.written or text == whole))
            left = [at for at in left if at not in kept]
        return sequences[::-1]

    def _place(self, reply: Reply, text: str) -> tuple[int, int, bool] | None:
        """Start and end of a reply that keeps its bytes in `text`, and whether an end of turn is part of it."""
        start = len(reply.prompt)
        if text.startswith(reply.prompt + reply.text):
            return start, start + len(reply.text), bool(reply.closing)
        body = reply.prompt + reply.text[: len(reply.text) - len(reply.closing)]
        other = next((each for each in self._finder.others if text.startswith(each, len(body))), "")
        if other and text.startswith(body):
            return start, len(body) + len(other), True
        return None

    def _locate(self, row: Canonical, whole: str, replies: dict[int, Reply]) -> _Sequence | Refusal:
        """One sequence with the turns as they stand in history, where `data.turns` asks for this."""
        spans: list[tuple[int, int]] = []
        ends = []
        for at, reply in replies.items():
            place = self._place(reply, whole) or self._finder.find_in_history(row, at, whole)
            if place is None or (spans and place[0] < spans[-1][1]):
                return Refusal(
                    f"turn {at + 1} is rendered differently once later turns follow, and cannot be told apart there: "
                    "set data.turns to auto"
                )
            spans.append(place[:2])
            ends += [place[1]] if place[2] else []
        return _Sequence(RenderedRow(whole, spans, ends, special=False), len(row["messages"]), "", written=True)

    # ── the template's own marks ───────────────────────────────────────────────────────────────────────────────────

    def _find_marked(self, row: Canonical, whole: str) -> tuple[Rendering, list[_Sequence]] | None:
        """The sequence with the spans that the template marks; None if it marks none, or if chat would differ."""
        messages = row["messages"]
        turns = [at for at, turn in enumerate(messages) if turn["role"] == "assistant"]
        if self._last_only or self._turns == "unrolled" or any(messages[at].get("weight") == 0 for at in turns):
            return None
        if self._finder.thoughts.opening and (
            self._finder.thoughts.opens or any(find_thought(messages[at])[0] for at in turns)
        ):
            return None
        text, marked = self._tokenizer.render_marked(messages, row.get("tools"))
        if text != whole or not marked:
            return None
        spans = [self._trim(text, start, end) for start, end in marked]
        prompts = [self._render_prompt({**row, "messages": messages[:at]}) for at in turns if at]
        openings = [len(prompt) for prompt in prompts if isinstance(prompt, str) and text.startswith(prompt)]
        spans = [(next((at for at in openings if start < at < end), start), end) for start, end in spans]
        spans = [(start, end) for start, end in spans if start < end]
        trained = "".join(text[start:end] for start, end in spans)
        if not writes_calls([messages[at] for at in turns], trained):
            return None
        for at in turns:
            thought, words = find_thought(messages[at])
            if find_missing(messages[at], words, trained) or (thought and not contains(trained, thought)):
                return None
        ends = [end for _, end in spans if text.endswith(self._finder.special, 0, end)]
        sequence = _Sequence(RenderedRow(text, spans, ends, special=False), len(messages), "", written=True)
        return Rendering([sequence.rendered], "marked"), [sequence]

    def _trim(self, text: str, start: int, end: int) -> tuple[int, int]:
        """A marked span without the blanks behind the token that ends the turn, which the model never has to say."""
        body = len(text[start:end].rstrip())
        return (start, start + body) if text.endswith(self._finder.special, start, start + body) else (start, end)

    # ── one rendering a row ────────────────────────────────────────────────────────────────────────────────────────

    def _render_by_plan(self, row: Canonical) -> tuple[Rendering, list[_Sequence]] | None:
        messages = row["messages"]
        if "tools" in row or not all(message.keys() == _PLAIN for message in messages):
            return None
        if any(OPEN in message["content"] for message in messages):
            return None
        roles = tuple(message["role"] for message in messages)
        if roles not in self._plans:
            if len(self._plans) == _SKELETONS:
                self._plans.clear()
            self._plans[roles] = self._make_plan(roles)
        if (plan := self._plans[roles]) is None:
            return None
        found = []
        for through, skeleton in plan.sequences:
            try:
                text = render(self._tokenizer, messages[:through], reply_follows=False)
            except Exception:  # noqa: BLE001 - templates raise what they like
                return None
            if (sequence := skeleton.fit(text, messages[:through])) is None:
                return None
            found.append(sequence)
        return Rendering(found, plan.means), []

    def _make_plan(self, roles: tuple[str, ...]) -> _Plan | None:
        marks = [f"qz{number}xv" for number in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        found = self._work_out({"messages": messages})
        if isinstance(found, Refusal):
            return None
        rendering, sequences = found
        planned = []
        for each in sequences:
            skeleton = Skeleton.cut(each.rendered, marks[: each.through], each.appended)
            if skeleton is None or not each.written or len(each.rendered.ends) != len(each.rendered.spans):
                return None  # without an end token, the end of a turn depends on its content
            planned.append((each.through, skeleton))
        return _Plan(planned, rendering.means) if planned else None
