"""JSONL: one object per line. Blank lines are skipped. A list, or objects over several lines, are read as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.prep.files import json_document
from engine.prep.files.lines import describe_too_long, read_lines
from engine.prep.files.record import Record, decode


def read(stream: BinaryIO, path: Path) -> Iterator[Record]:
    start = stream.peek(json_document.LOOKED_AT) if hasattr(stream, "peek") else b""
    if json_document.is_document(start):
        return json_document.read(stream, path)
    return _read_lines(stream, path)


def _read_lines(stream: BinaryIO, path: Path) -> Iterator[Record]:
    name = str(path)
    for number, offset, end, content in read_lines(stream):
        if content is None:
            yield Record(name, number, offset, end, None, describe_too_long())
        elif content.strip():
            yield Record(name, number, offset, end, *decode(content))
