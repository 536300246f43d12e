"""Files of placed rows, which the stages read and write: lines `[file, line, offset, row]` that record where each row
comes from.

`file` is an index in the stages' list of paths, `line` (from 1) and `offset` (bytes) are the row's place in that file,
and `row` is JSON, byte for byte as in the source unless a stage has changed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.prep.chunks import Span, read_lines

LONGEST = 2**31
"""Bytes of a line at most. We write these files: a line is as long as its row, whose length a reader has checked."""

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode
encode_sorted = msgspec.json.Encoder(order="sorted").encode


class PlacedRow(NamedTuple):
    """A row and its place; `raw` is the row as JSON."""

    file: int
    line: int
    offset: int
    raw: bytes

    def row(self) -> dict[str, Any]:
        value: dict[str, Any] = decode(self.raw)
        return value

    def to_line(self, raw: bytes | None = None) -> bytes:
        """The line with its line end; `raw`, if given, replaces the row."""
        return b"[%d,%d,%d,%b]\n" % (self.file, self.line, self.offset, self.raw if raw is None else raw)


def parse_line(content: bytes) -> PlacedRow:
    """Parse a line, with or without its line end."""
    file, line, offset, raw = content.rstrip(b"\n")[1:-1].split(b",", 3)
    return PlacedRow(int(file), int(line), int(offset), raw)


def read_span(span: Span) -> Iterator[PlacedRow]:
    for line in read_lines(span, LONGEST):
        assert line.content is not None
        yield parse_line(line.content)


def read_file(path: Path) -> Iterator[PlacedRow]:
    with path.open("rb") as file:
        for line in file:
            yield parse_line(line)


def reject_line(path: str, row: PlacedRow, reason: str, stage: str, *, code: str) -> bytes:
    """A line of rejects.jsonl."""
    entry = {"file": path, "line": row.line, "offset": row.offset, "code": code, "reason": reason, "stage": stage}
    return encode(entry) + b"\n"
