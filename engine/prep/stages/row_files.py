"""Rows between two stages: a file of lines `[file, line, offset, row]`, so that each row still knows where it came from.

`file` is a number in a list of paths that the stages are given, `line` (from 1) and `offset` (bytes) are the row's place in it,
and `row` is JSON, byte for byte as it stood in the source unless a stage has changed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.prep.chunks import Span, read_lines

LONGEST = 2**31
"""Bytes. These files are our own: a line is as long as its row, which a reader has already let through."""

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode
encode_sorted = msgspec.json.Encoder(order="sorted").encode


class PlacedRow(NamedTuple):
    """A row and its place; `raw` is its JSON."""

    file: int
    line: int
    offset: int
    raw: bytes

    def row(self) -> dict[str, Any]:
        value: dict[str, Any] = decode(self.raw)
        return value

    def to_line(self, raw: bytes | None = None) -> bytes:
        """The line, its end included; with another row at the same place when `raw` is given."""
        return b"[%d,%d,%d,%b]\n" % (self.file, self.line, self.offset, self.raw if raw is None else raw)


def parse_line(content: bytes) -> PlacedRow:
    """A line, without or with its end."""
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


def reject_line(path: str, row: PlacedRow, reason: str, stage: str) -> bytes:
    """A line of rejects.jsonl."""
    told = {"file": path, "line": row.line, "offset": row.offset, "reason": reason, "stage": stage}
    return encode(told) + b"\n"
