"""Walks through the header of a GGUF file, and checks that everything it counts is there.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The library that reads such files believes their
counts: it would build lists of a billion entries, or wait for ever.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8
_MOST_ENTRIES = 10_000_000
"""Texts of one array. The largest vocabularies have 260,000."""


def check(file: Path) -> None:
    """Raises ValueError for a header that is not complete."""
    with file.open("rb") as opened:
        if opened.seek(0, 2) < 24:
            raise ValueError("it is too short")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Walk(content).through()


class _Walk:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at, self._end = content, 0, len(content)

    def through(self) -> None:
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, where 2 and 3 are known")
        tensors, settings = self._number("<Q"), self._number("<Q")
        for _ in range(self._bounded(settings, 13)):
            self._text()
            self._value(self._number("<I"))
        for _ in range(self._bounded(tensors, 24)):
            self._text()
            dimensions = self._number("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            self._skip(8 * dimensions + 12)

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            kind, count = self._number("<I"), self._number("<Q")
            if kind == _STRING:
                for _ in range(self._bounded(count, 8)):
                    self._text()
            else:
                self._skip(self._bounded(count, self._size(kind)) * self._size(kind))
        else:
            self._skip(self._size(kind))

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"a setting is of the unknown type {kind}")
        return _SIZES[kind]

    def _bounded(self, count: int, size: int) -> int:
        """A count of things of at least `size` bytes each, which must fit into the rest of the file."""
        if count > min((self._end - self._at) // size, _MOST_ENTRIES):
            raise ValueError(f"its header counts {count:,} entries, for which it is too short")
        return count

    def _text(self) -> None:
        self._skip(self._number("<Q"))

    def _skip(self, size: int) -> None:
        if size > self._end - self._at:
            raise ValueError("its header is cut off")
        self._at += size

    def _number(self, form: str) -> int:
        start = self._at
        self._skip(struct.calcsize(form))
        number: int = struct.unpack_from(form, self._content, start)[0]
        return number
