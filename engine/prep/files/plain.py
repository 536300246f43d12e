"""Plain text: a row `{"text": line}` per line, as `datasets` and LLaMA-Factory read .txt. Blank lines are skipped.

Documents of several lines belong in a JSONL file with a `text` column.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.prep.files.lines import describe_too_long, read_lines
from engine.prep.files.record import BOM, NOT_UTF8, Record


def read(stream: BinaryIO, path: Path) -> Iterator[Record]:
    name = str(path)
    for number, offset, end, content in read_lines(stream):
        if content is None:
            yield Record(name, number, offset, end, None, describe_too_long())
            continue
        try:
            text = (content if offset else content.removeprefix(BOM)).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            yield Record(name, number, offset, end, None, NOT_UTF8)
            continue
        if text.strip():
            yield Record(name, number, offset, end, {"text": text})
