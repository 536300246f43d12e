"""The JSON of answers, as OpenAI's API has it: whole, and in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from engine.serving.request_schemas import RequestError
from engine.serving.scheduler import Job
from engine.serving.streams import News

BROKEN_OFF = {
    "late": RequestError(504, "the request took longer than this server allows", code="timeout"),
    "closing": RequestError(503, "the server is shutting down", code="shutting_down"),
}
"""How a reply ended -> what the client is told instead of the rest."""


def broken_off(choices: list[News]) -> RequestError | None:
    """What is told of the first choice that ended before its end."""
    for choice in choices:
        if choice.ended and choice.ended.finish not in ("stop", "length"):
            failed = RequestError(500, f"the model failed: {choice.ended.cause}", code="failed")
            return BROKEN_OFF.get(choice.ended.finish, failed)
    return None


def prompt_tokens(jobs: list[Job]) -> int:
    """Choices of one prompt share it."""
    return sum({id(job.prompt): len(job.prompt) for job in jobs}.values())


def usage(jobs: list[Job]) -> dict[str, int]:
    prompt, made = prompt_tokens(jobs), sum(job.tokens for job in jobs)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


@dataclass
class Shape:
    """Of one request's answer: `chat` or text."""

    chat: bool
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.name}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def whole(self, choices: list[News], jobs: list[Job]) -> dict[str, Any]:
        """An answer in one piece, its choices ended."""
        told = []
        for choice in choices:
            assert choice.ended is not None
            if self.chat:
                message = {"role": "assistant", "content": choice.text}
                if choice.thinking:
                    message["reasoning_content"] = choice.thinking
                content: dict[str, Any] = {"message": message}
            else:
                content = {"text": choice.text}
            told.append({"index": choice.index, **content, "logprobs": None, "finish_reason": choice.ended.finish})
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head(kind) | {"choices": told, "usage": usage(jobs)}

    def chunk(self, choices: list[dict[str, Any]], used: dict[str, int] | None, with_usage: bool) -> dict[str, Any]:
        told = self._head("chat.completion.chunk" if self.chat else "text_completion") | {"choices": choices}
        return told | {"usage": used} if with_usage else told

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What a choice begins with."""
        return [self._piece(index, {"role": "assistant", "content": ""})] if self.chat else []

    def pieces(self, news: News) -> list[dict[str, Any]]:
        """What goes into a chunk of it."""
        delta = {}
        if news.thinking and self.chat:
            delta["reasoning_content"] = news.thinking
        if news.text:
            delta["content"] = news.text
        told = [self._piece(news.index, delta)] if delta else []
        if news.ended:
            told.append(self._piece(news.index, {}, news.ended.finish))
        return told

    def _piece(self, index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}
