"""A tokenizer of one's own: BPE or Unigram over bytes, trained with `tokenizers` and loaded by `AutoTokenizer`.

Text is cut into words (letters, digits by threes, blanks, the rest) and the words' UTF-8 bytes are what is merged (BPE, Sennrich
et al. 2016) or scored (Unigram, Kudo 2018). No text is unknown then, and decoding gives back exactly what was encoded: nothing
is normalised, no blank is added or taken away. Without byte fallback characters take the place of bytes, and those that the
training texts lack become `<unk>`.

The same texts and settings give the same `tokenizer.json`, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from engine.models.template_lock import end_of_turn
from engine.options.tokenizer import DEFAULT, Kind

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
RECORD = "training.json"
"""In a tokenizer's folder: what it was trained with."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""No token reaches over the border of two words. As GPT-4's, with combining marks counted as letters."""

_PIECE = 2**20
"""Characters of a text that are learnt from at a time."""
_LONGEST = 24
"""Characters (bytes, with byte fallback) of a Unigram token at most: eight Chinese characters."""
_FREQUENT = 4
"""Times that a word must stand in the texts to be a candidate by itself."""
_STEP = 1e-4
"""What the Unigram trainer puts between the scores of characters that it has no score for."""
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
    """A `PreTrainedTokenizerFast` over `size` tokens, special ones included; over fewer when the texts hold no more.

    `texts` is gone through once, and once more each for Unigram and without byte fallback. `template` is a Jinja chat template, ChatML when None. Tokens 0…
    are `<|endoftext|>`, ChatML's own when that is the template, then `special`. The token that ends the template's turns ends
    generation too. Raises ValueError for a size that cannot hold the alphabet, for no texts, for a template that fails.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = _special_tokens(special, chatml=template is None, unknown=not byte_fallback)
    if size < (smallest := _minimum_size(tokens, byte_fallback)):
        raise ValueError(f"size {size} is too small: special tokens and the alphabet alone are {smallest}")
    backend = _train(texts, kind, size, tokens, byte_fallback)
    tokenizer = PreTrainedTokenizerFast(
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
    """Tokens that special ones and the alphabet take. Raises ValueError for a special token that cannot be."""
    return _minimum_size(_special_tokens(special, chatml, unknown=not byte_fallback), byte_fallback)


def list_notes(tokenizer: Any, size: int, naming: str = "--special") -> list[str]:
    """What whoever asked for `size` tokens and this template should know. `naming` is where further special tokens are named."""
    found = []
    if len(tokenizer) < size:
        found.append(f"{len(tokenizer)} tokens, not {size}: the texts hold no more that repeat")
    if end_of_turn(tokenizer) is None:
        found.append(f"the chat template ends no turn with a special token: name it with {naming}")
    special = set(tokenizer.all_special_tokens)
    plain = sorted(set(_LOOKS_SPECIAL.findall(tokenizer.chat_template)) - special)
    if plain:
        found.append(f"the chat template writes {', '.join(plain)} as ordinary text: name it with {naming}")
    return found


def measure_compression(tokenizers: Mapping[str, Any], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each tokenizer: `bytes_per_token` (UTF-8; more is better), `tokens_per_character`, `exact`, the share of texts that
    come back from their tokens as they were, and its `size`."""
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
    """The special token that ends a turn. Raises ValueError for a template that cannot render a question and its answer."""
    try:
        token = end_of_turn(tokenizer)
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
    # Specials as AddedToken: nothing around them is taken off or normalised.
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
        raise ValueError("there is no text to learn from")
    return _sort_vocabulary(tokenizer, len(tokens)) if kind == "unigram" else tokenizer


class _TrainingTexts:
    """Texts in pieces, rare characters left out, and further words; counts the texts' characters."""

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
    """Every frequent word, written twice without the blank between.

    The Unigram trainer begins with what stands more than once in the list of different words. However frequent a word is,
    it stands in that list once, and unless it is part of another it would never become a token. (Measured on 2.3 million characters
    of English and Chinese, 15,000 tokens: 4.1 bytes a token instead of 3.6.)
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for start in range(0, len(text), _PIECE):
            words = cut.pre_tokenize_str(text[start : start + _PIECE])
            counts.update(word for word, _ in words if 1 < len(word) <= _LONGEST and not word.isspace())
    return [word + word.lstrip() for word in sorted(counts) if counts[word] >= _FREQUENT]


def _alphabet(texts: Iterable[str], most: int) -> tuple[list[str], dict[int, None]]:
    """The `most` frequent characters, and a translation that drops the others."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return ranked[:most], {ord(character): None for character in ranked[most:]}


def _sort_vocabulary(tokenizer: Any, special: int) -> Any:
    """The tokenizer with its Unigram vocabulary in an order, and with scores, that do not depend on chance.

    The trainer sums floats in the order of a hash map, so scores differ in their last digits from run to run, and it deals
    scores to characters that it has none for (`min + k·_STEP`) in that order too. They all get the lowest score here.
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
