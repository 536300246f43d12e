"""Text in other encodings than UTF-8: byte order marks, and streams that are read as UTF-8."""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
"""Byte order mark -> encoding. The longer of two that begin alike comes first."""
_BLOCK = 2**16
LOOKED_AT = 16
"""Bytes from which an encoding is found."""


def find_encoding(start: bytes, given: str | None) -> str:
    """The encoding of a text that begins with these bytes: that of its byte order mark, else the given one, else UTF-8.

    Raises ValueError for a text that is UTF-16 without saying so.
    """
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    if given is not None:
        return codecs.lookup(given).name
    for name, ascii_at in (("utf-16-le", 0), ("utf-16-be", 1)):
        pairs = start[: len(start) // 2 * 2]
        if len(pairs) >= 4 and not any(pairs[1 - ascii_at :: 2]) and all(pairs[ascii_at::2]):
            raise ValueError(f"it seems to be written in {name}: say so in encoding (or --encoding)")
    return "utf-8"


def open_as_utf8(stream: BinaryIO, encoding: str) -> BinaryIO:
    """A stream with the text of `stream`, which has this encoding, in UTF-8. Bytes that the encoding does not have stay
    as they are, so that they spoil no other row."""
    return io.BufferedReader(_Transcoder(stream, encoding), _BLOCK)


class _Transcoder(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="surrogateescape")
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            block = self._stream.read(_BLOCK)
            self._ended = not block
            self._ready = self._decoder.decode(block, final=self._ended).encode("utf-8", "surrogateescape")
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size
