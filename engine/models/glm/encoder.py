"""sentencepiece where a fast tokenizer has its Rust one: the encoder of ChatGLM-6B's `ice_text.model`.

The file is a Unigram model with an NFKC normaliser, in which line ends, tabs and runs of blanks are pieces of their
own. It stays with sentencepiece: the Unigram model and normaliser of `tokenizers`, built from the same file, gave other
ids for more than a quarter of 5000 short texts with combining marks, half-width kana and Hangul letters.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.models.glm import literal

FILE = "ice_text.model"
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<unk>", "<pad>", "<s>", "</s>")
"""Tokens that a text is cut at. All are pieces of the file; sentencepiece itself never makes them of text."""
LINE, TAB, BLANKS = "<n>", "<|tab|>", "<|blank_{}|>"
LONGEST = 80
"""Blanks in the longest run that is a piece."""

_CUT = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
_SPACE = re.compile(f"\n|\t| {{2,{LONGEST}}}|" + "|".join(re.escape(mark) for mark, _ in literal.UNDONE))
_SHOWN = re.compile(r"<n>|<\|tab\|>|<\|blank_(\d+)\|>")


@dataclass(frozen=True)
class Encoding:
    """What data preparation reads of a `tokenizers.Encoding`. `offsets` are characters [begin, end) of the text; what
    stands for no character of its own, the blank before a text or all but the last byte of a character, shares those of
    the token behind it."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def char_to_token(self, position: int) -> int | None:
        """The first token that holds the character; None where none does."""
        at = bisect_right(self.offsets, position, key=lambda span: span[1])
        return at if at < len(self.ids) and self.offsets[at][0] <= position else None


class Encoder:
    """sentencepiece with the interface of a `tokenizers.Tokenizer`, as far as data preparation uses it."""

    model = None
    """It is none of the models that `engine.prep.encoding` knows a quicker way for."""
    encode_special_tokens = False
    """`encode` is told with each text."""

    def __init__(self, content: bytes) -> None:
        import sentencepiece

        self._content = content
        self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.special = {name: self._model.piece_to_id(name) for name in SPECIAL}

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def no_truncation(self) -> None:
        """It never cuts."""

    def no_padding(self) -> None:
        """It never pads."""

    def to_bytes(self) -> bytes:
        """The sentencepiece file."""
        return self._content

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The special tokens by id."""
        from tokenizers import AddedToken

        return {number: AddedToken(name, normalized=False, special=True) for name, number in self.special.items()}

    def piece(self, number: int) -> str:
        return str(self._model.id_to_piece(number))

    def number(self, piece: str) -> int:
        return int(self._model.piece_to_id(piece))

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Encoding]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def encode(self, text: str, add_special_tokens: bool = True, cut: bool = True) -> Encoding:
        """The tokens of a text; `cut` takes special tokens out of it first. Where they are added, they end it: [gMASK]
        and <sop>."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for part, is_special in zip(_CUT.split(text) if cut else [text], itertools.cycle((False, True)), strict=False):
            if is_special:
                ids.append(self.special[part])
                offsets.append((at, at + len(part)))
            elif part:
                for number, begin, end in self._text(part):
                    ids.append(number)
                    offsets.append((at + begin, at + end))
            at += len(part)
        if add_special_tokens:
            ids += self.opening
            offsets += [(at, at)] * len(self.opening)
        return Encoding(ids, offsets)

    @property
    def opening(self) -> list[int]:
        """What a reply begins behind."""
        return [self.special["[gMASK]"], self.special["<sop>"]]

    def _text(self, text: str) -> list[tuple[int, int, int]]:
        """(id, begin, end) of the tokens of a text without special tokens."""
        written, origins = _mark_spaces(text)
        found = self._model.encode(written, return_type="offset_mapping")
        tokens: list[tuple[int, int, int]] = []
        begin = end = len(text)
        for number, (first, last) in zip(reversed(found["ids"]), reversed(found["offsets"]), strict=True):
            if last > first:
                begin, end = origins[first], max(origins[last - 1] + 1, origins[last])
            tokens.append((number, begin, end))
        tokens.reverse()
        return tokens

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of tokens. sentencepiece shows no special token: where they are wanted, the text between them is
        decoded part by part."""
        names = {number: name for name, number in self.special.items()}
        if skip_special_tokens:
            return self._decoded([number for number in ids if number not in names])
        parts = itertools.groupby(ids, key=lambda number: number in names)
        return "".join(
            "".join(names[number] for number in part) if special else self._decoded(list(part))
            for special, part in parts
        )

    def _decoded(self, ids: list[int]) -> str:
        known = [
            number for number in ids if 0 <= number < len(self)
        ]  # the model's vocabulary is padded beyond the pieces
        return _SHOWN.sub(_unmark_space, str(self._model.decode(known)))


def _mark_spaces(text: str) -> tuple[str, list[int]]:
    """Text as the pieces have it, and of each of its characters and its end the place in `text`."""
    parts: list[str] = []
    origins: list[int] = []
    at = 0

    def add(part: str, places: Sequence[int]) -> None:
        parts.append(part)
        origins.extend(places)

    undone = dict(literal.UNDONE)
    for found in _SPACE.finditer(text):
        add(text[at : found.start()], range(at, found.start()))
        match found[0]:
            case "\n":
                part = LINE
            case "\t":
                part = TAB
            case mark if mark in undone:
                part = undone[mark]
            case blanks:
                part = BLANKS.format(len(blanks))
        add(part, [found.start()] * len(part))
        at = found.end()
    add(text[at:], range(at, len(text)))
    return "".join(parts), [*origins, len(text)]


def _unmark_space(found: re.Match[str]) -> str:
    if found[1]:
        return " " * int(found[1])
    return "\n" if found[0] == LINE else "\t"
