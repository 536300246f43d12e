"""Trains a tokenizer: BPE or Unigram over bytes, with `tokenizers`, to be loaded by `AutoTokenizer`.

Text is split into words (letters, digits by threes, blanks, the rest), and the words' UTF-8 bytes are merged (BPE,
Sennrich et al. 2016) or scored (Unigram, Kudo 2018). So no text is unknown, and decoding returns exactly what was
encoded: nothing is normalised, and no blank is added or removed. Without byte fallback, characters take the place of
bytes, and characters that the training texts lack become `<unk>`.

The same texts and settings give the same `tokenizer.json`, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from engine.models import tokenizers
from engine.models.template_lock import find_end_of_turn
from engine.models.template_metadata import choose_template
from engine.options.tokenizer import DEFAULT, Kind

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
RECORD = "training.json"
"""The file in a tokenizer's folder that records how it was trained."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The words, which no token crosses. The pattern is GPT-4's, with combining marks counted as letters."""

_PIECE = 2**20
"""Characters of a text that are passed to the trainer at a time."""
_LONGEST = 24
"""Characters (bytes, with byte fallback) of the longest Unigram token: eight Chinese characters."""
_FREQUENT = 4
"""How often a word must occur in the texts to become a candidate token as a whole."""
_STEP = 1e-4
"""The step between the scores that the Unigram trainer assigns to characters without a score."""
_LOOKS_SPECIAL = re.compile(r"<\|[\w ]+\|>|</?[A-Za-z_]+>|\[/?[A-Z_]+\]")


def train(
    texts: Iterable[str],
    *,
    kind: Kind = DEFAULT.kind,
    size: int = DEFAULT.vocab_size,
    special: Sequence[str] = (),
    template: str | None = None,
    byte_fallback: bool = DEFAULT.byte_fallback,
) -> Any:
    """A `PreTrainedTokenizerFast` with `size` tokens, special ones included, or fewer if the texts do not yield more.

    `texts` is iterated once, and once more each for Unigram and without byte fallback. `template` is a Jinja chat
    template; None means ChatML. The first tokens are `<|endoftext|>`, ChatML's own if that is the template, then
    `special`. The token that ends the template's turns also ends generation. Raises ValueError for a size too small for
    the alphabet, for texts without content, and for a template that fails.
    """
    tokens = _special_tokens(special, chatml=template is None, unknown=not byte_fallback)
    if size < (smallest := _minimum_size(tokens, byte_fallback)):
        raise ValueError(f"size {size} is too small: special tokens and the alphabet alone take {smallest}")
    backend = _train(texts, kind, size, tokens, byte_fallback)
    tokenizer = tokenizers.find_fast_class()(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=None if byte_fallback else UNKNOWN,
        additional_special_tokens=[token for token in tokens if token not in (END_OF_TEXT, UNKNOWN)],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML if template is None else template
    turn_end = _turn_end(tokenizer)
    if turn_end is not None:
        tokenizer.eos_token = turn_end
    return tokenizer


def minimum_size(special: Sequence[str], chatml: bool, byte_fallback: bool) -> int:
    """The number of special tokens plus the alphabet. Raises ValueError for an invalid special token."""
    return _minimum_size(_special_tokens(special, chatml, unknown=not byte_fallback), byte_fallback)


def list_notes(tokenizer: Any, size: int, naming: str = "--special") -> list[str]:
    """Notes for a user who asked for `size` tokens and this template. `naming` is the option that takes further special
    tokens."""
    found = []
    if len(tokenizer) < size:
        found.append(f"{len(tokenizer)} tokens, not {size}: the texts hold no more that repeat")
    if find_end_of_turn(tokenizer) is None:
        found.append(f"the chat template ends no turn with a special token: name it with {naming}")
    special = set(tokenizer.all_special_tokens)
    plain = sorted(set(_LOOKS_SPECIAL.findall(choose_template(tokenizer.chat_template))) - special)
    if plain:
        found.append(f"the chat template writes {', '.join(plain)} as ordinary text: name it with {naming}")
    return found


def measure_compression(tokenizers: Mapping[str, Any], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each tokenizer: `bytes_per_token` (UTF-8; higher is better), `tokens_per_character`, the share of texts that
    decoding restores (`exact`), and its `size`."""
    size, characters = sum(len(text.encode()) for text in texts), sum(map(len, texts))
    table: dict[str, dict[str, float]] = {}
    for name, tokenizer in tokenizers.items():
        ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
        tokens = sum(map(len, ids))
        exact = sum(
            tokenizer.decode(each, clean_up_tokenization_spaces=False) == text
            for each, text in zip(ids, texts, strict=True)
        )
        table[name] = {
            "bytes_per_token": size / tokens if tokens else 0.0,
            "tokens_per_character": tokens / characters if characters else 0.0,
            "exact": exact / len(texts) if texts else 0.0,
            "size": len(tokenizer),
        }
    return table


def _minimum_size(tokens: list[str], byte_fallback: bool) -> int:
    return len(tokens) + (256 if byte_fallback else 1)


def _special_tokens(special: Sequence[str], chatml: bool, unknown: bool) -> list[str]:
    for token in special:
        if not token or token != token.strip():
            raise ValueError(f"the special token {token!r} is empty or begins or ends with a blank")
    own = [END_OF_TEXT, *(CHATML_TOKENS if chatml else ()), *((UNKNOWN,) if unknown else ())]
    return list(dict.fromkeys([*own, *special]))


def _turn_end(tokenizer: Any) -> str | None:
    """The special token that ends a turn; None without one. Raises ValueError if the template cannot render a question
    and its answer."""
    try:
        token = find_end_of_turn(tokenizer)
    except Exception as error:  # noqa: BLE001 - templates raise what they like
        raise ValueError(f"the chat template cannot render a question and its answer: {error}")
    return None if token is None else str(tokenizer.convert_ids_to_tokens(token))


# ── training ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _train(texts: Iterable[str], kind: Kind, size: int, tokens: list[str], byte_fallback: bool) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    rare: dict[int, None] = {}
    cutting: Any
    decoder: Any
    if byte_fallback:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cutting, decoder = pre_tokenizers.Sequence([words, bytes_]), decoders.ByteLevel()
    else:
        alphabet, rare = _alphabet(texts, (size - len(tokens) + 1) // 2)
        cutting, decoder = words, decoders.Fuse()
    unknown = None if byte_fallback else UNKNOWN
    # AddedToken, so that nothing around special tokens is stripped or normalised.
    shared: dict[str, Any] = {
        "vocab_size": size,
        "special_tokens": [AddedToken(token, special=True, normalized=False) for token in tokens],
        "initial_alphabet": sorted(alphabet),
        "show_progress": False,
    }
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        trainer: Any = trainers.BpeTrainer(**shared)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**shared, unk_token=unknown, max_piece_length=_LONGEST)
    tokenizer.pre_tokenizer, tokenizer.decoder = cutting, decoder
    seen = _TrainingTexts(texts, rare, _double_frequent_words(words, texts) if kind == "unigram" else [])
    tokenizer.train_from_iterator(seen, trainer)
    if not seen.characters:
        raise ValueError("there is no text to train on")
    return _sort_vocabulary(tokenizer, len(tokens)) if kind == "unigram" else tokenizer


class _TrainingTexts:
    """Iterates over the texts in pieces, without rare characters, then over `further` words; counts the texts'
    characters."""

    def __init__(self, texts: Iterable[str], rare: dict[int, None], further: list[str]) -> None:
        self.texts, self.rare, self.further, self.characters = texts, rare, further, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            for start in range(0, len(text), _PIECE):
                piece = text[start : start + _PIECE]
                yield piece.translate(self.rare) if self.rare else piece
        yield from (word.translate(self.rare) for word in self.further)


def _double_frequent_words(cut: Any, texts: Iterable[str]) -> list[str]:
    """Every frequent word, written twice without a blank between.

    The Unigram trainer starts from strings that occur more than once in the list of distinct words. A word occurs there
    once, however frequent it is, and so would never become a token unless it is part of another word. (Measured on 2.3
    million characters of English and Chinese, 15,000 tokens: 4.1 bytes per token instead of 3.6.)
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for start in range(0, len(text), _PIECE):
            words = cut.pre_tokenize_str(text[start : start + _PIECE])
            counts.update(word for word, _ in words if 1 < len(word) <= _LONGEST and not word.isspace())
    return [word + word.lstrip() for word in sorted(counts) if counts[word] >= _FREQUENT]


def _alphabet(texts: Iterable[str], most: int) -> tuple[list[str], dict[int, None]]:
    """The `most` most frequent characters, and a translation table that drops all others."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return ranked[:most], {ord(character): None for character in ranked[most:]}


def _sort_vocabulary(tokenizer: Any, special: int) -> Any:
    """The tokenizer with its Unigram vocabulary in a reproducible order and with reproducible scores.

    The trainer sums floats in the order of a hash map, so scores differ in their last digits from run to run, and it
    assigns scores to characters without one (`min + k·_STEP`) in that order too. Here these all get the lowest score.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    model = content["model"]
    head, pieces = model["vocab"][:special], model["vocab"][special:]
    low = min(score for _, score in pieces)
    scored = [
        (piece, round(low if len(piece) == 1 and _is_dealt_score(score - low) else score, 6)) for piece, score in pieces
    ]
    model["vocab"] = [*head, *map(list, sorted(scored, key=lambda each: (-each[1], each[0])))]
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def _is_dealt_score(above: float) -> bool:
    steps = above / _STEP
    return steps < 2**16 and abs(steps - round(steps)) < 1e-6
