"""Records, which every kind of file is read as."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from engine.protocol.text import name_kind


class BadFile(ValueError):
    """A file that cannot be read as a whole; the text begins with its name and line."""


BOM = b"\xef\xbb\xbf"
NOT_UTF8 = (
    "not UTF-8, nor the encoding that is named; name the right one (encoding, --encoding), such as gb18030 or cp1252"
)
"""The reason with which text in another encoding is rejected."""


class Record(NamedTuple):
    """A row as in its file, or the reason why it cannot be read. `line` counts from 1; the row's bytes are [`offset`,
    `end`).

    In compressed files the bytes are those of the unpacked content. In Parquet and Arrow files `line` is the row's
    number, and `offset` and `end` are 0.
    """

    file: str
    line: int
    offset: int
    end: int
    value: dict[str, Any] | None
    reason: str = ""


def decode(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """(value, "") for a JSON object, (None, reason) for anything else. A byte order mark at the beginning is
    ignored."""
    try:
        value = msgspec.json.decode(content.removeprefix(BOM))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return None, f"not JSON: {error}" if _is_utf8(content) else NOT_UTF8
    if not isinstance(value, dict):
        return None, f"a row is a JSON object, not {name_kind(value)}"
    return value, ""


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
