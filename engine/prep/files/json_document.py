"""A JSON document: a list of objects, or consecutive objects. Streamed: only the current row is in memory.

The document is split into rows by brackets and quotes alone, and each row is decoded separately, so it keeps its place,
and a row that is not valid JSON affects no other. (Incremental parsers such as ijson report no places and stop at the
first error.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from engine.prep.files.lines import LONGEST_LINE, describe_too_long, read_lines
from engine.prep.files.record import BOM, BadFile, Record, decode

_BLOCK = 2**20
LOOKED_AT = 2**16
"""Bytes by which a document is told from JSONL."""
DEEPEST = 200_000
"""Lists and objects inside each other. A row less deep is a reject; brackets alone would have no end to find."""
_BLANKS = re.compile(rb"[ \t\r\n]*+")
_INSIDE = re.compile(rb'(?:[^"\[\]{}]*+"[^"\\]*+(?:\\.[^"\\]*+)*")*[^"\[\]{}]*+', re.DOTALL)
"""Up to the next bracket outside strings, or to a string that does not end in the block."""
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*', re.DOTALL)
"""Up to the quote that ends a string, or to a backslash at the end of the block."""
# Only sets are possessive: CPython before 3.11.5 (Debian 12 has 3.11.2) fails on possessive groups.
_KEY = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*"\s*:', re.DOTALL)
_SCALAR = re.compile(rb'[^\[\]{}",]*+')


def is_document(start: bytes) -> bool:
    """Whether a text that begins so is a list of objects, or objects over several lines, rather than JSONL."""
    text = start[:LOOKED_AT].removeprefix(BOM).lstrip()
    first, _, rest = text.partition(b"\n")
    first, rest = first.strip(), rest.strip()
    if first == b"[":
        return rest[:1] in (b"{", b"]")
    if first == b"{":
        return rest[:1] == b"}" or _KEY.match(rest) is not None
    if not first.startswith(b"[") or first[1:].lstrip()[:1] != b"{":
        return False
    return not rest or not _is_whole(first)


def _is_whole(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


class Row(NamedTuple):
    """A row's place and bytes; `content` is None if there are too many."""

    line: int
    offset: int
    end: int
    content: bytes | None


def read(stream: BinaryIO, path: Path) -> Iterator[Record]:
    """Raises ValueError for a list that is incomplete or lacks a comma."""
    start = stream.peek(_BLOCK) if hasattr(stream, "peek") else b""
    first, _, rest = start.removeprefix(BOM).lstrip().partition(b"\n")
    if rest.strip() and decode(first)[0] is not None:
        # This is JSONL under another name: read it as such, so that a bad line affects no other.
        for each in read_lines(stream):
            if each.content is None or each.content.strip():
                value, reason = (None, describe_too_long()) if each.content is None else decode(each.content)
                yield Record(str(path), each.number, each.offset, each.end, value, reason)
        return
    for line, offset, end, content in _Splitter(stream, path.name).rows():
        value, reason = (None, describe_too_long("a row")) if content is None else decode(content)
        yield Record(str(path), line, offset, end, value, reason)


class _Splitter:
    """Splits a stream into rows. Keeps the current block, the position in it, and the position of the block in the
    file."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._block, self._at = b"", 0
        self._before, self._lines, self._counted = 0, 1, 0
        self._held: list[bytes] | None = None
        self._size, self._from = 0, 0

    def rows(self) -> Iterator[Row]:
        if self._load_block() and self._block.startswith(BOM):
            self._at = len(BOM)
        if self._peek() == b"[":
            yield from self._read_list()
            if self._peek():
                raise self._error("more follows behind the list")
            return
        while character := self._peek():
            if character != b"{":
                raise self._error("not JSON: expected a list of objects, or objects")
            yield self._read_row()

    def _read_list(self) -> Iterator[Row]:
        self._at += 1
        while character := self._peek():
            if character in b",}":
                raise self._error(f"not JSON: {character.decode()} where a row is to begin")
            if character != b"]":
                yield self._read_row()
                character = self._peek()
            if character == b",":
                self._at += 1
            elif character == b"]":
                self._at += 1
                return
            elif character:
                raise self._error("the list lacks a comma")
        raise self._error("the list is broken off")

    def _read_row(self) -> Row:
        """The row that begins here: a bracketed value, a string, or anything up to the next comma or bracket."""
        line, offset = self._line_number(), self._before + self._at
        self._held, self._size, self._from = [], 0, self._at
        character = self._block[self._at : self._at + 1]
        if character in b"[{":
            whole = self._skip_brackets()
        elif character == b'"':
            whole = self._skip_string()
        else:
            whole = self._skip_scalar()
        if not whole:
            raise BadFile(f"{self._name}:{line}: not JSON: the row that begins here has no end")
        self._keep()
        content = None if self._size > LONGEST_LINE else b"".join(self._held)
        self._held = None
        return Row(line, offset, self._before + self._at, content)

    def _skip_brackets(self) -> bool:
        """Skip behind the bracket that closes the one here; returns False if there is none."""
        depth = 0
        while True:
            character = self._block[self._at : self._at + 1]
            if character == b'"':
                if not self._skip_string():
                    return False
            elif character:
                self._at += 1
                depth += 1 if character in b"[{" else -1
                if not depth:
                    return True
                if depth > DEEPEST:
                    raise self._error(f"not rows: lists or objects inside each other, more than {DEEPEST:,} deep")
            elif not self._load_block():
                return False
            self._at = _INSIDE.match(self._block, self._at).end()  # type: ignore[union-attr]

    def _skip_string(self) -> bool:
        """Skip behind the quote that ends the string here; returns False if there is none."""
        self._at += 1
        while True:
            self._at = _STRING.match(self._block, self._at).end()  # type: ignore[union-attr]
            character = self._block[self._at : self._at + 1]
            if character == b'"':
                self._at += 1
                return True
            self._at = len(self._block)
            if not self._load_block():
                return False
            # A backslash at the end of a block escapes the first byte of the next one.
            self._at = len(character)

    def _skip_scalar(self) -> bool:
        while True:
            self._at = _SCALAR.match(self._block, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._block):
                return True
            if not self._load_block():
                return False

    # ── blocks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _peek(self) -> bytes:
        """The next character that is not a blank; empty at the end of the stream."""
        while True:
            self._at = _BLANKS.match(self._block, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._block):
                return self._block[self._at : self._at + 1]
            if not self._load_block():
                return b""

    def _load_block(self) -> bool:
        """Read the next block, and keep the current row's part of this one. Returns False at the end of the stream."""
        block = self._stream.read(_BLOCK)
        if not block:
            return False
        self._keep()
        self._lines += self._block.count(b"\n", self._counted)
        self._before += len(self._block)
        self._block, self._at, self._from, self._counted = block, 0, 0, 0
        return True

    def _keep(self) -> None:
        if self._held is None:
            return
        self._size += self._at - self._from
        if self._size > LONGEST_LINE:
            self._held.clear()
        else:
            self._held.append(self._block[self._from : self._at])
        self._from = self._at

    def _line_number(self) -> int:
        self._lines += self._block.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def _error(self, reason: str) -> BadFile:
        return BadFile(f"{self._name}:{self._line_number()}: {reason}")
