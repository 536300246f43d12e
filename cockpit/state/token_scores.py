"""The probabilities that a model gives the tokens of a text, as the chat service reports them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.formatting import counted

LIKELY, UNLIKELY, RARE = 0.5, 0.1, 0.01
"""Probabilities: from the first a token is likely, below the second it surprises the model, below the last very
much."""


@dataclass(frozen=True)
class ScoredToken:
    """A token's text and log-probability, None where it has none, and the likeliest tokens of its place."""

    text: str
    logprob: float | None
    likeliest: tuple[tuple[str, float], ...] = ()

    @property
    def probability(self) -> float | None:
        return None if self.logprob is None else math.exp(min(0.0, self.logprob))

    @property
    def surprises(self) -> bool:
        return self.probability is not None and self.probability < UNLIKELY


@dataclass(frozen=True)
class ScoredText:
    """`own`: the tokens are those that the model has generated; else those into which its tokenizer splits the
    text."""

    tokens: tuple[ScoredToken, ...]
    perplexity: float | None
    nats: float | None
    own: bool = False

    @cached_property
    def surprises(self) -> list[int]:
        """The places of the tokens that surprise the model."""
        return [at for at, token in enumerate(self.tokens) if token.surprises]

    def most_surprising(self, count: int) -> list[ScoredToken]:
        """The tokens with the lowest probabilities of those that surprise, the lowest first."""
        found = [self.tokens[at] for at in self.surprises]
        return sorted(found, key=lambda token: token.logprob or 0.0)[:count]


def read_scores(result: Mapping[str, Any]) -> ScoredText:
    """The answer to `score`."""
    tokens = tuple(ScoredToken(text, logprob, tuple(_read_likeliest(top))) for text, logprob, top in result["tokens"])
    return ScoredText(tokens, result.get("perplexity"), result.get("nats"), bool(result.get("own")))


def _read_likeliest(top: Sequence[Sequence[Any]]) -> Iterator[tuple[str, float]]:
    for text, logprob in top:
        if logprob is not None:
            yield str(text), float(logprob)


def describe_scores(scores: ScoredText) -> str:
    """The text's figures in a line."""
    scored = sum(token.logprob is not None for token in scores.tokens)
    if scores.perplexity is None or scores.nats is None:
        return tr("{scored:,} tokens · the model's probabilities are not finite numbers", scored=scored)
    count = len(scores.surprises)
    bits = scores.nats / math.log(2)
    parts = (
        counted(scored, "token"),
        tr("perplexity {perplexity} · {bits:.2f} bits a token", perplexity=_format(scores.perplexity), bits=bits),
        tr("{count:,} surprise{plural} it", count=count, plural="s"[: count == 1]),
    )
    return " · ".join(parts)


def format_probability(value: float | None) -> str:
    """As percent, with the digits that matter."""
    if value is None:
        return "–"
    percent = 100 * value
    if percent >= 99.95:
        return "100 %"
    if percent >= 0.01:
        return f"{percent:.{1 if percent >= 1 else 2}f} %"
    return f"{percent:.0e} %" if percent > 0 else "0 %"


def _format(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"
