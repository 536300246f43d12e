"""Log-probabilities of tokens as OpenAI's two kinds of completion report them.

`engine.inference.token_scores` computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.inference.token_scores import ScoredToken

MOST_ALTERNATIVES = 20
"""Greatest number of likeliest tokens that are reported beside one token, as in OpenAI's API."""


def _read_bytes(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode("utf-8", "surrogatepass"))


def format_chat(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice."""

    def entry(text: str, value: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": _read_bytes(text)}

    content = [entry(each.text, each.logprob) | {"top_logprobs": [entry(*top) for top in each.top]} for each in tokens]
    return {"content": content, "refusal": None}


def format_text(tokens: Sequence[ScoredToken], begin: int) -> dict[str, Any]:
    """`logprobs` of a text completion's choice, whose first token is at the character `begin` of the text."""
    offsets, place = [], begin
    for each in tokens:
        offsets.append(place)
        place += each.length
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [dict(reversed(each.top)) if each.logprob is not None else None for each in tokens],
        "text_offset": offsets,
    }
