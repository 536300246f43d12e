"""The JSON of answers in OpenAI's format: complete, and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.serving.jobs import Job
from engine.serving.logprobs import format_chat, format_text
from engine.serving.request_schemas import RequestError
from engine.serving.streams import ChoiceUpdate
from engine.serving.tool_calls import ToolCall, ToolCallReader

FAILURES = {
    "late": RequestError(504, "the request took longer than this server allows", code="timeout"),
    "closing": RequestError(503, "the server is shutting down", code="shutting_down"),
}
"""Finish of a job -> the error that its client gets."""


def find_failure(choices: list[ChoiceUpdate]) -> RequestError | None:
    """The error of the first choice that did not end normally."""
    for choice in choices:
        if choice.ended and choice.ended.finish not in ("stop", "length"):
            failed = RequestError(500, f"the model failed: {choice.ended.cause}", code="failed")
            return FAILURES.get(choice.ended.finish, failed)
    return None


def prompt_tokens(jobs: list[Job]) -> int:
    """The tokens of all prompts; choices of one prompt share it."""
    return sum({id(job.prompt): len(job.prompt) for job in jobs}.values())


def usage(jobs: list[Job]) -> dict[str, int]:
    prompt, generated = prompt_tokens(jobs), sum(job.tokens for job in jobs)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


@dataclass
class ResponseWriter:
    """Writes the answer of one request, a completion of `chat` or of text."""

    chat: bool
    model: str
    make_reader: Callable[[], ToolCallReader] | None = None
    """Makes what finds tool calls in a choice; None: there are none."""
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _lengths: dict[int, int] = field(default_factory=dict)
    """Characters of the tokens that have been sent, by choice."""
    _readers: dict[int, ToolCallReader] = field(default_factory=dict)

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.name}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def whole(self, choices: list[ChoiceUpdate], jobs: list[Job]) -> dict[str, Any]:
        """The complete answer, after all choices have ended."""
        written = []
        for choice in choices:
            assert choice.ended is not None
            text, calls = self._read(choice)
            if self.chat:
                message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
                if calls:
                    message["tool_calls"] = [call.body() for call in calls]
                if choice.thinking:
                    message["reasoning_content"] = choice.thinking
                content: dict[str, Any] = {"message": message}
            else:
                content = {"text": choice.text}
            scores = self._format_scores(choice, 0) if jobs[choice.index].alternatives is not None else None
            finish = self._finish(choice)
            written.append({"index": choice.index, **content, "logprobs": scores, "finish_reason": finish})
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head(kind) | {"choices": written, "usage": usage(jobs)}

    def chunk(self, choices: list[dict[str, Any]], used: dict[str, int] | None, with_usage: bool) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk" if self.chat else "text_completion") | {"choices": choices}
        return chunk | {"usage": used} if with_usage else chunk

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The first piece of a choice."""
        return [self._piece(index, {"role": "assistant", "content": ""})] if self.chat else []

    def pieces(self, update: ChoiceUpdate) -> list[dict[str, Any]]:
        """The pieces of an update."""
        delta: dict[str, Any] = {}
        before = self._readers[update.index].found if update.index in self._readers else 0
        text, calls = self._read(update)
        if update.thinking and self.chat:
            delta["reasoning_content"] = update.thinking
        if text:
            delta["content"] = text
        if calls:
            delta["tool_calls"] = [{"index": before + place} | call.body() for place, call in enumerate(calls)]
        scores = None
        if update.scored:
            begin = self._lengths.get(update.index, 0)
            scores = self._format_scores(update, begin)
            self._lengths[update.index] = begin + sum(each.length for each in update.scored)
        pieces = [self._piece(update.index, delta, scores=scores)] if delta or scores else []
        if update.ended:
            pieces.append(self._piece(update.index, {}, self._finish(update)))
        return pieces

    def _read(self, update: ChoiceUpdate) -> tuple[str, list[ToolCall]]:
        """The text and the tool calls of an update."""
        if self.make_reader is None:
            return update.text, []
        reader = self._readers.setdefault(update.index, self.make_reader())
        text, calls = reader.feed(update.text)
        if update.ended:
            rest, more = reader.finish()
            text, calls = text + rest, calls + more
        return text, calls

    def _finish(self, update: ChoiceUpdate) -> str:
        assert update.ended is not None
        called = update.index in self._readers and self._readers[update.index].found
        return "tool_calls" if called and update.ended.finish == "stop" else update.ended.finish

    def _format_scores(self, update: ChoiceUpdate, begin: int) -> dict[str, Any]:
        return format_chat(update.scored) if self.chat else format_text(update.scored, begin)

    def _piece(
        self, index: int, delta: dict[str, Any], finish: str | None = None, scores: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return {"index": index, **content, "logprobs": scores, "finish_reason": finish}
