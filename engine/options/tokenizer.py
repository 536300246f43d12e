"""The options of training a tokenizer, for a profile (`model.tokenizer`) and for `cockpit tokenizer train`."""

from __future__ import annotations

from typing import Literal

from engine.options.base import Options, option

Kind = Literal["bpe", "unigram"]


class TokenizerOptions(Options):
    """A tokenizer that is trained on the rows of the profile."""

    kind: Kind = option("bpe", help="The algorithm: bpe or unigram, both over bytes.")
    vocab_size: int = option(15_000, help="Size of the vocabulary, special tokens included.", unit="tokens", ge=2)
    samples: int = option(100_000, help="Rows to learn from, a seeded sample.", unit="rows", ge=1)
    special_tokens: list[str] = option([], help="Further special tokens, such as those that a chat template writes.")
    chat_template: str | None = option(
        None,
        help="Chat template it is saved with, a Jinja file; none: data.template where that is a file, else ChatML.",
    )
    byte_fallback: bool = option(True, help="Unknown characters become bytes; off: they become <unk>.")
    seed: int = option(42, help="Seed of the sample.")


DEFAULT = TokenizerOptions()
