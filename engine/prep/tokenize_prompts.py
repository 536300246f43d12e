"""Prompts that a model is to answer while it trains, as token ids, beside what a reward needs to know of them.

A prompt is a conversation up to its last reply, rendered as chat renders it, up to where the assistant begins to speak. That last reply is
the `reference` that a task's metric holds the model's own replies against; a reward model reads the prompt's turns.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

from engine.prep.chat_labels import Refusal, Renderer, refuse_misfit
from engine.prep.encoding import WIDTH, EncodeRequest, choose_encoder
from engine.prep.formats.canonical import Canonical, Message, kind_of
from engine.prep.templates import ChatTokenizer, unwrap_tokenizer
from engine.prep.token_rows import Batch, Counts, id_column
from engine.tasks import TASKS


class PromptTokenizer:
    """Tokenises batches, as `tokenize.Tokenizing` does others. Prompts longer than `max_prompt` are cut at their beginning; those that
    are longer than `max_length` then are left out, and counted as masked. With a `task` the reference must be an answer of it.
    Raises ValueError for a tokenizer that is pure Python."""

    def __init__(self, tokenizer: Any, max_length: int, max_prompt: int | None, task: str | None) -> None:
        chat = ChatTokenizer.of(tokenizer)
        self._renderer, self._encoder = Renderer(chat, "assistant"), choose_encoder(unwrap_tokenizer(chat))
        self._max_length, self._max_prompt = max_length, max_prompt
        self._task = importlib.import_module(TASKS[task]) if task else None
        self.template = chat.chat_template

    def __call__(self, rows: Sequence[Canonical], counts: Counts) -> Batch:
        """Rows that can be answered, in order; `counts` is told of all but the refused."""
        refused: dict[int, str] = {}
        asked: list[tuple[int, Canonical, str]] = []
        for at, row in enumerate(rows):
            if "messages" not in row:
                counts.misfits[kind_of(row)] += 1
                refused[at] = refuse_misfit(row).reason
            elif reason := self._find_fault(row["messages"]):
                refused[at] = reason
            else:
                prompt, reference = _split_reference(row["messages"])
                tools = {"tools": row["tools"]} if "tools" in row else {}
                asked.append((at, {"messages": prompt, **tools}, reference))
        texts = self._renderer.render_prompts([row for _, row, _ in asked])
        counts.unwritten += self._renderer.unwritten.total()
        self._renderer.unwritten.clear()
        rendered = [text if isinstance(text, str) else "" for text in texts]
        encoded = self._encoder.encode([EncodeRequest(text, (), False) for text in rendered])
        kept, ids, prompts, references = [], [], [], []
        for (at, row, reference), text, found in zip(asked, texts, encoded, strict=True):
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
        """Tokens of each row, an array of [rows, 1], twice: nothing of a prompt is trained, so a reply would begin behind it."""
        import numpy

        counted = numpy.array(batch.columns["prompt_ids"][1], dtype=numpy.int32)
        return counted[:, None], counted

    def _find_fault(self, messages: list[Message]) -> str:
        prompt, reference = _split_reference(messages)
        if not prompt:
            return "nothing stands before the last reply: there is no prompt"
        if self._task is not None:
            try:
                self._task.score([reference], [reference])
            except ValueError as error:
                return f"the last reply is no answer that the reward's task knows: {error}"
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
        counts.ended += 1  # whether a reply ends, the model shows when it writes one
        counts.lengths[length] += 1
        return kept


def _split_reference(messages: list[Message]) -> tuple[list[Message], str]:
    """The turns before the last reply, and what that says."""
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]
