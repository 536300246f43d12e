"""Finds texts that equal, or nearly equal, earlier ones."""

from __future__ import annotations

import math
import unicodedata
from array import array
from hashlib import blake2b
from typing import Any

_SHINGLE = 5
"""Characters."""


class Duplicates:
    """Texts that differ only in case, width, blanks and punctuation, or whose shingles have a Jaccard similarity of at
    least `similarity`.

    Similar texts are found through prefix filtering (Bayardo et al. 2007): in any fixed order of shingles, two sets of
    similarity t share one of the first |x| − ⌈t·|x|⌉ + 1 of each. The result is exact.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._read = array("Q")
        self._sorted: Any = None
        self._digests: set[int] = set()
        self._sets: list[frozenset[int]] = []
        self._index: dict[int, list[int]] = {}

    def add_exact(self, text: str) -> None:
        """Add a text that is compared for equality only, at eight bytes. Must be called before the first `find`."""
        self._read.append(_digest(normalize(text)))

    def add(self, text: str) -> None:
        """Add a text that is compared for equality and similarity."""
        plain = normalize(text)
        self._digests.add(_digest(plain))
        shingles = _shingles(plain)
        for shingle in self._prefix(shingles):
            self._index.setdefault(shingle, []).append(len(self._sets))
        self._sets.append(shingles)

    def find(self, text: str) -> str:
        """Returns `duplicate`, `near-duplicate`, or an empty string."""
        plain = normalize(text)
        if self._is_known(_digest(plain)):
            return "duplicate"
        shingles = _shingles(plain)
        candidates = {place for shingle in self._prefix(shingles) for place in self._index.get(shingle, ())}
        for place in candidates:
            other = self._sets[place]
            both = len(shingles & other)
            if both >= self._similarity * (len(shingles) + len(other) - both):
                return "near-duplicate"
        return ""

    def _is_known(self, digest: int) -> bool:
        import numpy as np

        if self._sorted is None:
            self._sorted = np.unique(np.frombuffer(self._read, dtype=np.uint64))
        place = int(np.searchsorted(self._sorted, np.uint64(digest)))
        there = place < len(self._sorted) and int(self._sorted[place]) == digest
        return there or digest in self._digests

    def _prefix(self, shingles: frozenset[int]) -> list[int]:
        size = len(shingles) - math.ceil(self._similarity * len(shingles)) + 1
        return sorted(shingles)[:size]


def normalize(text: str) -> str:
    """The text's letters and digits in one case and width; the text itself if it has none."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(filter(str.isalnum, folded)) or text


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _shingles(text: str) -> frozenset[int]:
    """Hashes of the text's shingles, comparable within this process only."""
    return frozenset(hash(text[at : at + _SHINGLE]) for at in range(max(1, len(text) - _SHINGLE + 1)))
