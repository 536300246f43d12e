"""Log-probabilities of tokens: from logits to what OpenAI's two kinds of completion report.

They are the model's own, before temperature, penalties and a schema change what is drawn, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_ALTERNATIVES = 20
"""Greatest number of likeliest tokens that are reported beside one token, as in OpenAI's API."""
SLAB = 64
"""Positions whose distributions are in memory at the same time."""


@dataclass(frozen=True)
class ScoredToken:
    """A token's text and log-probability, in nats; that of a prompt's first token is None. `top` has the likeliest
    tokens of its place, the likeliest first."""

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass
class TokenScorer:
    """Scores tokens of one tokenizer. Used in the device's thread alone."""

    tokenizer: Any
    _texts: dict[int, str] = field(default_factory=dict)

    def score(self, logits: Any, tokens: Sequence[int], alternatives: int) -> list[ScoredToken]:
        """`logits` is [tokens, vocabulary]: the distribution from which each of `tokens` comes."""
        scored: list[ScoredToken] = []
        for begin in range(0, len(tokens), SLAB):
            part = list(tokens[begin : begin + SLAB])
            scored += self._score_slab(logits[begin : begin + len(part)], part, alternatives)
        return scored

    def _score_slab(self, logits: Any, tokens: list[int], alternatives: int) -> list[ScoredToken]:
        import torch

        values = logits.float().log_softmax(-1)
        own = values.gather(1, torch.tensor(tokens, device=values.device)[:, None]).squeeze(1).tolist()
        likeliest = values.topk(min(alternatives, values.shape[-1]), -1)
        tops = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return [
            ScoredToken(self.text(token), value, tuple(zip(map(self.text, ids), top, strict=True)))
            for token, value, (ids, top) in zip(tokens, own, tops, strict=True)
        ]

    def first_text(self, token: int) -> str:
        """The text of a token that begins a text."""
        text: str = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    def text(self, token: int) -> str:
        """The text that a token adds behind others, special tokens too; U+FFFD for a part of a character."""
        if token not in self._texts:
            # Alone, a token of some tokenizers would lose the blank at its beginning.
            before = self.tokenizer("a", add_special_tokens=False).input_ids
            alone, both = (
                self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (before, [*before, token])
            )
            self._texts[token] = both.removeprefix(alone)
        return self._texts[token]


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
        place += len(each.text)
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [dict(reversed(each.top)) if each.logprob is not None else None for each in tokens],
        "text_offset": offsets,
    }
