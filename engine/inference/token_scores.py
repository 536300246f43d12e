"""Log-probabilities of tokens: from logits to each token's own and those of its likeliest alternatives; and of a whole
text, in one pass over it.

They are the model's own, before temperature, penalties and a schema change what is drawn, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.inference import soft_prompt
from engine.inference.generate import describe_no_room, room
from engine.inference.prefill import CancellableForward

SLAB = 64
"""Positions whose distributions are in memory at the same time."""
CHUNK = 256
"""Positions of a text in one pass over it."""
PART = "\ufffd"
"""The text of a part of a character."""
LONGEST_CHARACTER = 12
"""Tokens at most that are tried together as one character, and what stands beside it in these tokens."""
_LARGEST = 700.0
"""Nats beyond which a perplexity is no finite number."""


@dataclass(frozen=True)
class ScoredToken:
    """A token's text and log-probability, in nats; that of a prompt's first token is None. `top` has the likeliest
    tokens of its place, the likeliest first. `shown` is false for a special token, which a reply's text leaves out."""

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()
    shown: bool = True

    @property
    def length(self) -> int:
        """Characters that it adds to the text."""
        return len(self.text) if self.shown else 0


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

    def is_shown(self, token: int) -> bool:
        """Whether a reply's text has it: special tokens are left out."""
        return bool(self.tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False))

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


def score_tokens(
    model: Any,
    scorer: TokenScorer,
    ids: Sequence[int],
    begin: int,
    alternatives: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[ScoredToken]:
    """Score the tokens of `ids` from the place `begin`, each behind those before it. `begin` is at least 1.

    Logits of `CHUNK` positions are in memory at the same time. Raises ValueError for more tokens than the model's
    context holds, `prefill.Cancelled` after `cancelled` has returned true.
    """
    import torch

    with torch.inference_mode():
        model, cache, before = soft_prompt.start_cache(model)
        if room(model, len(ids), before) < 0:
            raise ValueError(describe_no_room(model, len(ids)))
        given = torch.tensor([[*ids]], device=model.device)
        forward = CancellableForward(model, cancelled)
        output = forward(given[:, :begin], cache)
        scored = scorer.score(output.logits[0, -1:], ids[begin : begin + 1], alternatives)
        # Behind a prompt that is read both ways, a reply is read as it is written: token by token.
        chunk = 1 if getattr(model, "reads_both_ways", False) else CHUNK
        for start in range(begin, len(ids) - 1, chunk):
            end = min(start + chunk, len(ids) - 1)
            output = forward.score(given[:, start:end], output.past_key_values)
            scored += scorer.score(output.logits[0], ids[start + 1 : end + 1], alternatives)
    return _complete_characters(scorer.tokenizer, ids[begin:], scored)


def _complete_characters(tokenizer: Any, ids: Sequence[int], scored: list[ScoredToken]) -> list[ScoredToken]:
    """Give the last of the tokens that are parts of a character its text: alone, each of them is U+FFFD."""
    held: list[int] = []
    before = ""
    """What stands before the character in the token that begins it."""
    found = []
    for token, each in zip(ids, scored, strict=True):
        held = [*held, token] if PART in each.text and len(held) < LONGEST_CHARACTER else []
        if len(held) == 1:
            before = each.text.partition(PART)[0]
        text = tokenizer.decode(held, clean_up_tokenization_spaces=False) if len(held) > 1 else PART
        if PART not in text:
            whole = text.removeprefix(before)
            own = each.text, each.logprob
            top = tuple((whole, value) if (other, value) == own else (other, value) for other, value in each.top)
            each, held = replace(each, text=whole, top=top), []
        found.append(each)
    return found


def summarize_scores(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """What a client gets: `tokens` as [text, log-probability, alternatives], how many have one (`scored`), and their
    mean surprise in `nats` and as `perplexity`. Null where the model's numbers are not finite."""
    values = [each.logprob for each in tokens if each.logprob is not None]
    nats = -sum(values) / len(values) if values else math.nan
    finite = math.isfinite(nats)
    return {
        "tokens": [
            [each.text, _finite(each.logprob), [[text, _finite(value)] for text, value in each.top]] for each in tokens
        ],
        "scored": len(values),
        "nats": nats if finite else None,
        "perplexity": math.exp(min(nats, _LARGEST)) if finite else None,
    }


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
