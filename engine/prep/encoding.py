"""Text to token ids: exactly those of the fast tokenizer, and several times faster for byte-level BPE tokenizers.

A byte-level BPE tokenizer splits text into words before it merges anything, and a word's tokens depend on that word
alone. So `WordEncoder` caches words and passes only new ones to the tokenizer. It splits at a space between two solid
characters, because no known pre-tokenizer makes a word that spans one; `cuts_at_blanks` checks the given tokenizer
component by component. All other tokenizers use `TextEncoder`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

WIDTH = 4
"""Bytes of a token id: int32 in the machine's order."""
_LONGEST = 64
"""Characters of the longest word that is cached."""
_MOST = 2**17
"""Words in a cache, some tens of megabytes; a fuller cache is cleared."""

_CUT = re.compile(r" (?<=[!-~\w] )(?=[!-~\w])")
"""Splits at, and removes, each space between two solid characters: visible ASCII, letters and digits of any script."""
_PUNCTUATED = re.compile(r"([A-Za-z]+)([!-&(-/:-@\[-`{-~].*)", re.DOTALL).match
"""Letters, and the rest from the first punctuation mark on, encoded separately. Not the apostrophe: its endings belong
to the word."""


class EncodeRequest(NamedTuple):
    """A text to encode. `marks` are ascending character positions, at most the text's length, whose tokens are
    wanted."""

    text: str
    marks: Sequence[int]
    special: bool
    """Whether the tokenizer adds its own special tokens (begin, end)."""


class EncodedText(NamedTuple):
    """`ids` are int32 as bytes. `places` has for each mark the index of the token with its character, or of the next
    token with any (tokenizers may skip blanks), or the number of tokens if there is none."""

    ids: bytes
    places: list[int]


class Encoder(Protocol):
    def encode(self, requests: Sequence[EncodeRequest]) -> list[EncodedText]: ...


def choose_encoder(tokenizer: Any) -> Encoder:
    """The fastest exact encoder for a `tokenizers.Tokenizer` that neither truncates nor pads."""
    return WordEncoder(tokenizer) if cuts_at_blanks(tokenizer) else TextEncoder(tokenizer)


def find_token(encoding: Any, position: int, length: int) -> int:
    """The index of the token of a `tokenizers.Encoding` that holds the character, or of the next that holds any; the
    number of tokens if there is none."""
    found = (encoding.char_to_token(at) for at in range(position, length))
    return next((token for token in found if token is not None), len(encoding.ids))


class TextEncoder:
    """Encodes whole texts, with any tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, requests: Sequence[EncodeRequest]) -> list[EncodedText]:
        import numpy

        done = []
        for special, group in itertools.groupby(requests, key=lambda each: each.special):
            texts = list(group)
            encodings = self._tokenizer.encode_batch([each.text for each in texts], add_special_tokens=special)
            for each, encoding in zip(texts, encodings, strict=True):
                places = [find_token(encoding, mark, len(each.text)) for mark in each.marks]
                done.append(EncodedText(numpy.array(encoding.ids, dtype=numpy.int32).tobytes(), places))
        return done


class WordEncoder:
    """Encodes word by word with a cache, for tokenizers that `cuts_at_blanks` accepts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token.content: _bytes([id_]) for id_, token in added.items()}
        ordered = sorted(self._added, key=lambda content: (-len(content), content))
        # Group 1 is an added token: `split` returns text, token, text, … At each position the longest token wins.
        self._split = re.compile("(" + "|".join(map(re.escape, ordered)) + ")" if ordered else r"((?!))").split
        alone, framed = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
        begin = framed.special_tokens_mask.index(0)
        self._frame = _bytes(framed.ids[:begin]), _bytes(framed.ids[begin + len(alone.ids) :])
        self._exact: dict[str, bytes] = {}
        """Word -> its tokens without a space before it."""
        self._spaced: dict[str, bytes] = {}
        """Word -> its tokens with a space before it."""
        self._within: dict[tuple[str, int], int] = {}

    def encode(self, requests: Sequence[EncodeRequest]) -> list[EncodedText]:
        for known in (self._exact, self._spaced, self._within):
            if len(known) > _MOST:
                known.clear()
        return [self._encode(*each) for each in requests]

    def _encode(self, text: str, marks: Sequence[int], special: bool) -> EncodedText:
        begin, end = self._frame if special else (b"", b"")
        pieces, places = [begin], []
        tokens, at, next_mark = len(begin) // WIDTH, 0, 0
        mark = marks[0] if marks else len(text)
        for number, part in enumerate(self._split(text)):
            ids = self._added[part] if number % 2 else self._part(part)
            behind = at + len(part)
            while mark < behind:
                places.append(tokens if number % 2 else tokens + self._tokens_before(part, mark - at))
                next_mark += 1
                mark = marks[next_mark] if next_mark < len(marks) else len(text)
            pieces.append(ids)
            tokens += len(ids) // WIDTH
            at = behind
        pieces.append(end)
        places += [tokens + len(end) // WIDTH] * (len(marks) - len(places))
        return EncodedText(b"".join(pieces), places)

    def _part(self, part: str) -> bytes:
        """Tokens of text without added tokens."""
        words = _CUT.split(part)
        found = list(map(self._spaced.get, words))
        found[0] = self._exact.get(words[0])
        if None in found:
            self._fill(words, found)
        return b"".join(found)  # type: ignore[arg-type]

    def _fill(self, words: list[str], found: list[bytes | None]) -> None:
        """Encode the missing words and cache them."""
        missing = [(index, _PUNCTUATED(words[index])) for index, ids in enumerate(found) if ids is None]
        unknown: dict[str, bytes] = {}
        for index, cut in missing:
            blank = " " if index else ""
            if cut is None:
                unknown[blank + words[index]] = b""
                continue
            if (self._spaced if index else self._exact).get(cut[1]) is None:
                unknown[blank + cut[1]] = b""
            if cut[2] not in self._exact:
                unknown[cut[2]] = b""
        texts = list(unknown)
        for text, encoding in zip(
            texts, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            unknown[text] = _bytes(encoding.ids)
        for index, cut in missing:
            word, blank, known = words[index], " " if index else "", self._spaced if index else self._exact
            if cut is None:
                found[index] = ids = unknown[blank + word]
            else:
                head, tail = known.get(cut[1]) or unknown[blank + cut[1]], self._exact.get(cut[2]) or unknown[cut[2]]
                found[index] = ids = head + tail
                _remember(known, cut[1], head)
                _remember(self._exact, cut[2], tail)
            _remember(known, word, ids)

    def _tokens_before(self, part: str, position: int) -> int:
        """The number of the part's tokens before the one with the character, or before the next with any."""
        tokens = at = 0
        for cut in _CUT.finditer(part):
            if position < cut.start():
                break
            tokens, at = tokens + len(self._part(part[at : cut.start()])) // WIDTH, cut.start()
        else:
            return tokens + self._token_within(part[at:], position - at)
        return tokens + self._token_within(part[at : cut.start()], position - at)

    def _token_within(self, text: str, position: int) -> int:
        place = self._within.get((text, position))
        if place is None:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            place = find_token(encoding, position, len(text))
            if len(text) <= _LONGEST:
                self._within[text, position] = place
        return place


def _remember(known: dict[str, bytes], text: str, ids: bytes) -> None:
    if len(text) <= _LONGEST:
        known[text] = ids


def _bytes(ids: list[int]) -> bytes:
    import numpy

    return numpy.array(ids, dtype=numpy.int32).tobytes()


# ── which tokenizers ───────────────────────────────────────────────────────────────────────────────────────────────

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ALTERNATIVES = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _ENDINGS, r"(?i:[sdmt]|ll|ve|re)", r"'(?i:[sdmt]|ll|ve|re)"),
    *(r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)", r"\s+"),
    *(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r"\p{N}", r"\p{N}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+"),
    *(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(rf"[^\r\n\p{{L}}\p{{N}}]?{first}{second}" + tail
      for first, second in ((_UPPER + "*", _LOWER + "+"), (_UPPER + "+", _LOWER + "*"))
      for tail in ("", _ENDINGS + "?")),
    *(r"[一-龥぀-ゟ゠-ヿ]+", r" ?[\p{P}\p{S}]+[\r\n]*", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"),
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
}  # fmt: skip
"""The alternatives in the pre-tokenizers of GPT-2, GPT-4(o), Llama 3, Qwen, Mistral (Tekken) and DeepSeek. None matches
a space behind a solid character, and none looks back: a text split there falls into the same words on both sides."""


def cuts_at_blanks(tokenizer: Any) -> bool:
    """Whether a text has the same tokens when it is split at every space between two solid characters."""
    from tokenizers.models import BPE

    if not isinstance(tokenizer.model, BPE) or tokenizer.model.dropout or tokenizer.encode_special_tokens:
        return False
    normalizer = _described(tokenizer.normalizer)
    if any(step["type"] != "NFC" for step in _steps(normalizer, "normalizers")):
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word or not token.content for token in added):
        return False
    if len({token.normalized for token in added}) > 1 or (normalizer and any(token.normalized for token in added)):
        return False  # these tokens are found in two passes, or in the normalised text
    steps = _steps(_described(tokenizer.pre_tokenizer), "pretokenizers")
    return all(map(_is_safe, steps)) and any(map(_ends_words, steps))


def _described(component: Any) -> Any:
    """A component of a tokenizer in the form of tokenizer.json; None if there is none."""
    return None if component is None else json.loads(component.__getstate__())


def _steps(description: Any, key: str) -> list[dict[str, Any]]:
    if description is None:
        return []
    if description["type"] == "Sequence":
        return [step for each in description[key] for step in _steps(each, key)]
    return [description]


def _is_safe(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "ByteLevel":
            return not step["add_prefix_space"]
        case "Digits":
            return True
        case "Split":
            whole = step["behavior"] == "Isolated" and not step["invert"]
            return whole and set(_alternatives(step["pattern"].get("Regex", ""))) <= _ALTERNATIVES
    return False


def _ends_words(step: dict[str, Any]) -> bool:
    """Whether this step alone ends a word at each such space."""
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    return step["type"] == "Split" and r"\s+" in _alternatives(step["pattern"].get("Regex", ""))


def _alternatives(pattern: str) -> list[str]:
    """A regular expression split at each `|` outside groups and classes."""
    found, depth, inside, current = [], 0, False, ""
    for token in re.findall(r"\\.|.", pattern, re.DOTALL):
        if token == "|" and not depth and not inside:
            found.append(current)
            current = ""
            continue
        inside = (inside or token == "[") and token != "]"
        depth += 0 if inside else (token == "(") - (token == ")")
        current += token
    return [*found, current]
