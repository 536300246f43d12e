"""What every kind of file comes to: records, each with its place."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec


class BadFile(ValueError):
    """A file that cannot be read as a whole; the text begins with its name and line."""


BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """A row as it stands in its file. `line` counts from 1, `offset` is the row's first byte; `end` the byte after it.

    In packed files bytes count unpacked. In parquet and arrow files `line` is the row's number, `offset` and `end` are 0.
    """

    file: str
    line: int
    offset: int
    end: int
    value: dict[str, Any] | None
    reason: str = ""


def decode(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """A JSON object as (value, ""), anything else as (None, reason). A byte order mark before it does not matter."""
    try:
        value = msgspec.json.decode(content.removeprefix(BOM))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return None, f"not JSON: {error}"
    if not isinstance(value, dict):
        return None, f"a row is a JSON object, not {type(value).__name__}"
    return value, ""
