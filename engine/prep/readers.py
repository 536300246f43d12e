"""Files to records, one at a time, each with its place. A JSONL file is never in memory as a whole.

A record that cannot be read comes out with a reason instead of a value; a file that cannot be read raises ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

LONGEST_LINE = 64 * 2**20
"""Bytes. A longer line is rejected without being held."""


class Record(NamedTuple):
    """A row as it stands in its file. `line` counts from 1, `offset` is the row's first byte; `end` the byte after it."""

    file: str
    line: int
    offset: int
    end: int
    value: dict[str, Any] | None
    reason: str = ""


def read(path: Path) -> Iterator[Record]:
    """The records of a file, by its suffix. Raises ValueError naming what can be read, OSError when the file cannot be opened."""
    return READERS[check_suffix(path)](path)


def check_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(
            f"{path.name}: cannot read {suffix or 'a file without suffix'}; known are {', '.join(READERS)}"
        )
    return suffix


def read_jsonl(path: Path) -> Iterator[Record]:
    """A JSON object a line; blank lines are no records."""
    with path.open("rb") as file:
        line, offset = 0, 0
        while content := file.readline(LONGEST_LINE + 1):
            line += 1
            start, whole = offset, len(content) <= LONGEST_LINE or content.endswith(b"\n")
            offset += len(content)
            if not whole:
                offset = _skip_line(file, offset)
                yield Record(str(path), line, start, offset, None, f"a line longer than {LONGEST_LINE // 2**20} MiB")
            elif content.strip():
                yield Record(str(path), line, start, offset, *decode(content.removeprefix(b"\xef\xbb\xbf")))


def decode(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """A line as (value, "") or (None, reason)."""
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return None, f"not JSON: {error}"
    if not isinstance(value, dict):
        return None, f"a row is a JSON object, not {type(value).__name__}"
    return value, ""


def read_json(path: Path) -> Iterator[Record]:
    """One JSON list of objects, or one object. Held in memory: a large set is better kept as JSONL."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: {error.reason} at byte {error.start}")
    scan = json.JSONDecoder().raw_decode
    at = _blank(text, 0)
    listed = text[at : at + 1] == "["
    at = _blank(text, at + 1) if listed else at
    line, offset, counted = 1, 0, 0
    while at < len(text) and text[at] != "]":
        line, offset, counted = line + text.count("\n", counted, at), offset + len(text[counted:at].encode()), at
        try:
            value, at = scan(text, at)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name}:{line}: not JSON: {getattr(error, 'msg', error)}")
        size = len(text[counted:at].encode("utf-8", "surrogatepass"))
        known = isinstance(value, dict)
        reason = "" if known else f"a row is a JSON object, not {type(value).__name__}"
        yield Record(str(path), line, offset, offset + size, value if known else None, reason)
        at = _blank(text, at)
        if not listed:
            break
        if text[at : at + 1] not in (",", "]"):
            raise ValueError(
                f"{path.name}:{line + text.count(chr(10), counted, at)}: the list is broken off or lacks a comma"
            )
        at = _blank(text, at + 1) if text[at] == "," else at


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {".jsonl": read_jsonl, ".json": read_json}


def _skip_line(file: Any, offset: int) -> int:
    """Go behind the line that the file stands in; returns the offset there."""
    while content := file.readline(2**20):
        offset += len(content)
        if content.endswith(b"\n"):
            break
    return int(offset)


def _blank(text: str, at: int) -> int:
    """The place of the next character that is not blank."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
