"""The encoder of ChatGLM-6B's `ice_text.model`: sentencepiece in place of a fast tokenizer's Rust encoder.

The file is a Unigram model with an NFKC normaliser, in which line ends, tabs and runs of spaces are pieces. The Unigram
model and normaliser of `tokenizers`, built from the same file, gave other ids for more than a quarter of 5000 short
texts with combining marks, half-width kana and Hangul letters; so sentencepiece itself is used.
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
"""Tokens at which a text is split. They are pieces of the file, which sentencepiece never produces from text."""
LINE, TAB, BLANKS = "<n>", "<|tab|>", "<|blank_{}|>"
LONGEST = 80
"""Spaces in the longest run that is a piece."""

_CUT = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
_SPACE = re.compile(f"\n|\t| {{2,{LONGEST}}}|" + "|".join(re.escape(mark) for mark, _ in literal.UNDONE))
_SHOWN = re.compile(r"<n>|<\|tab\|>|<\|blank_(\d+)\|>")


@dataclass(frozen=True)
class Encoding:
    """The part of `tokenizers.Encoding` that data preparation uses.

    `offsets` are characters [begin, end) of the text. A token without a character of its own (the space before a text,
    all but the last byte of a character) has the offsets of the next token.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]

    def char_to_token(self, position: int) -> int | None:
        """The first token that contains the character, or None."""
        at = bisect_right(self.offsets, position, key=lambda span: span[1])
        return at if at < len(self.ids) and self.offsets[at][0] <= position else None


class Encoder:
    """sentencepiece with the part of the interface of `tokenizers.Tokenizer` that data preparation uses."""

    model = None
    """It is no model for which `engine.prep.encoding` has a faster path."""
    encode_special_tokens = False
    """It is an argument of `encode`."""

    def __init__(self, content: bytes) -> None:
        import sentencepiece

        self._content = content
        self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.special = {name: self._model.piece_to_id(name) for name in SPECIAL}

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def no_truncation(self) -> None:
        """Does nothing: it never truncates."""

    def no_padding(self) -> None:
        """Does nothing: it never pads."""

    def to_bytes(self) -> bytes:
        """The content of the sentencepiece file."""
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
        """Encode a text; `cut` splits it at special tokens first. `add_special_tokens` appends [gMASK] and <sop>."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for part, is_special in zip(_CUT.split(text) if cut else [text], itertools.cycle((False, True)), strict=False):
            if is_special:
                ids.append(self.special[part])
                offsets.append((at, at + len(part)))
            elif part:
                for number, begin, end in self._encode_text(part):
                    ids.append(number)
                    offsets.append((at + begin, at + end))
            at += len(part)
        if add_special_tokens:
            ids += self.opening
            offsets += [(at, at)] * len(self.opening)
        return Encoding(ids, offsets)

    @property
    def opening(self) -> list[int]:
        """The tokens after which a reply starts."""
        return [self.special["[gMASK]"], self.special["<sop>"]]

    def _encode_text(self, text: str) -> list[tuple[int, int, int]]:
        """Encode a text without special tokens: (id, begin, end) of each token."""
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
        """Decode tokens. sentencepiece omits special tokens: to keep them, the text between them is decoded part by
        part."""
        names = {number: name for name, number in self.special.items()}
        if skip_special_tokens:
            return self._decode_pieces([number for number in ids if number not in names])
        parts = itertools.groupby(ids, key=lambda number: number in names)
        return "".join(
            "".join(names[number] for number in part) if special else self._decode_pieces(list(part))
            for special, part in parts
        )

    def _decode_pieces(self, ids: list[int]) -> str:
        known = [number for number in ids if 0 <= number < len(self)]  # the model's vocabulary is padded
        return _SHOWN.sub(_unmark_space, str(self._model.decode(known)))


def _mark_spaces(text: str) -> tuple[str, list[int]]:
    """The text with spaces written as the pieces write them, and the place in `text` of each of its characters and of
    its end."""
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
