"""Reads a stream line by line without keeping lines that are too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

LONGEST_LINE = 16 * 2**20
"""Bytes. A longer line or row is rejected without being loaded: decoded, a row of this size can take half a
gigabyte."""


def describe_too_long(what: str = "a line") -> str:
    """The reason with which a line or row that is too long is rejected."""
    return f"{what} longer than {LONGEST_LINE // 2**20} MiB"


class Line(NamedTuple):
    """A line with its line end; `content` is None if it is too long. `number` counts from 1, `offset` and `end` are in
    bytes."""

    number: int
    offset: int
    end: int
    content: bytes | None


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    number, offset = 0, 0
    while content := stream.readline(LONGEST_LINE + 1):
        number += 1
        start, whole = offset, len(content) <= LONGEST_LINE or content.endswith(b"\n")
        offset += len(content)
        if whole:
            yield Line(number, start, offset, content)
            continue
        del content  # free it before reading on: it may be large
        offset += _skip(stream)
        yield Line(number, start, offset, None)


def _skip(stream: BinaryIO) -> int:
    """Skip the rest of the current line; returns the number of bytes skipped."""
    passed = 0
    while content := stream.readline(2**20):
        passed += len(content)
        if content.endswith(b"\n"):
            break
    return passed
