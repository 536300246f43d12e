"""Prompts that a model answers while it trains, as token ids, with what a reward function needs to know about them.

A prompt is a conversation up to its last reply, rendered with the generation prompt. The last reply is the `reference`
with which a task's metric compares the model's replies; a reward model reads the prompt's turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.prep.chat_labels import Renderer
from engine.prep.encoding import WIDTH, EncodeRequest, choose_encoder
from engine.prep.formats.canonical import Canonical, Message, kind_of
from engine.prep.rendered import Refusal, refuse_misfit
from engine.prep.templates import ChatTokenizer, unwrap_tokenizer
from engine.prep.token_rows import Batch, Counts, id_column
from engine.tasks.task import load_task


class PromptTokenizer:
    """Tokenises prompts (see `BatchTokenizer`). A prompt longer than `max_prompt` tokens loses its beginning; one that
    is then still longer than `max_length` is dropped and counted as masked. With `task`, the reference must be an
    answer of that task. Raises ValueError for a tokenizer that is pure Python."""

    def __init__(self, tokenizer: Any, max_length: int, max_prompt: int | None, task: str | None) -> None:
        chat = ChatTokenizer.of(tokenizer)
        # The model writes the replies itself: what the template opens before them stays.
        self._renderer = Renderer(chat, "assistant", thinking="empty")
        self._encoder = choose_encoder(unwrap_tokenizer(chat))
        self._max_length, self._max_prompt = max_length, max_prompt
        self._task = load_task(task) if task else None
        self.template = chat.chat_template

    def __call__(self, rows: Sequence[Canonical], counts: Counts) -> Batch:
        """The rows that can be answered, in order. Adds every row but the refused ones to `counts`."""
        refused: dict[int, str] = {}
        conversations: list[tuple[int, Canonical, str]] = []
        for at, row in enumerate(rows):
            if "messages" not in row:
                counts.misfits[kind_of(row)] += 1
                refused[at] = refuse_misfit(row).reason
            elif reason := self._find_fault(row["messages"]):
                refused[at] = reason
            else:
                prompt, reference = _split_reference(row["messages"])
                tools = {"tools": row["tools"]} if "tools" in row else {}
                conversations.append((at, {"messages": prompt, **tools}, reference))
        texts = self._renderer.render_prompts([row for _, row, _ in conversations])
        counts.take_unwritten(self._renderer.unwritten)
        rendered = [text if isinstance(text, str) else "" for text in texts]
        encoded = self._encoder.encode([EncodeRequest(text, (), False) for text in rendered])
        kept, ids, prompts, references = [], [], [], []
        for (at, row, reference), text, found in zip(conversations, texts, encoded, strict=True):
            if isinstance(text, Refusal):
                refused[at] = text.reason
            elif cut := self._truncate(found.ids, counts):
                kept.append(at)
                ids.append(cut)
                prompts.append(json.dumps(row, ensure_ascii=False))
                references.append(reference)
        ones = [1] * len(kept)
        columns = {"prompt_ids": id_column(ids), "prompt": (prompts, ones), "reference": (references, ones)}
        return Batch(columns, kept, refused)

    def lengths(self, batch: Batch) -> tuple[Any, Any]:
        """Tokens of each row, int32 [rows, 1], and the same as [rows]: the first trained token would be that of the
        reply."""
        import numpy

        counted = numpy.array(batch.columns["prompt_ids"][1], dtype=numpy.int32)
        return counted[:, None], counted

    def _find_fault(self, messages: list[Message]) -> str:
        prompt, reference = _split_reference(messages)
        if not prompt:
            return "there is no turn before the last reply, so there is no prompt"
        if self._task is not None:
            try:
                self._task.score([reference], [reference])
            except ValueError as error:
                return f"the last reply is not an answer of the reward's task: {error}"
        return ""

    def _truncate(self, ids: bytes, counts: Counts) -> bytes:
        kept = ids if self._max_prompt is None else ids[max(0, len(ids) - self._max_prompt * WIDTH) :]
        if not kept or len(kept) > self._max_length * WIDTH:
            counts.truncated += len(kept) > 0
            counts.masked += 1
            return b""
        length = len(kept) // WIDTH
        counts.truncated += len(kept) < len(ids)
        counts.rows += 1
        counts.tokens += length
        counts.ended += 1  # the model writes the reply, so its end cannot be missing
        counts.lengths[length] += 1
        return kept


def _split_reference(messages: list[Message]) -> tuple[list[Message], str]:
    """The turns before the last reply, and the text of that reply."""
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]
