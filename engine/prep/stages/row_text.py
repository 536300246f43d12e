"""The text and the columns of a row, for the stages that look into rows."""

from __future__ import annotations

import json
from typing import Any

from engine.prep import detect_format
from engine.prep.formats.canonical import Canonical


def to_canonical(row: dict[str, Any], row_format: str | None) -> list[Canonical]:
    """The canonical rows of a row of this format; None means that it is canonical already. Raises ValueError."""
    return [row] if row_format is None else detect_format.convert(row_format, row)


def column(row: dict[str, Any], name: str) -> str | None:
    """A column's value as text, for a row in any format; None without one."""
    value = row.get(name)
    if value is None:
        columns = row.get("columns")
        value = columns.get(name) if isinstance(columns, dict) else None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def columns(row: dict[str, Any]) -> list[str]:
    """The columns that `column` would find."""
    kept = row.get("columns")
    return [*(name for name in row if name != "columns"), *(kept if isinstance(kept, dict) else ())]


def comparable_text(rows: list[Canonical]) -> str:
    """The text by which rows are compared: everything except system prompts, which rows of one task share."""
    return "\n".join(text for row in rows for _, text in _turns(row))


def questions(rows: list[Canonical]) -> list[str]:
    return [text for row in rows for role, text in _turns(row) if role == "user"]


def replies(rows: list[Canonical]) -> list[str]:
    """The assistant's texts; plain text counts as one."""
    return [text for row in rows for role, text in _turns(row) if role == "assistant"]


def _turns(row: Canonical) -> list[tuple[str, str]]:
    """(role, text) of all turns except system turns; plain text counts as a turn of the assistant."""
    if "text" in row:
        return [("assistant", row["text"])]
    turns = [turn for part in ("messages", "prompt", "chosen", "rejected", "completion") for turn in row.get(part, [])]
    return [(turn["role"], _turn_text(turn)) for turn in turns if turn["role"] != "system"]


def _turn_text(turn: dict[str, Any]) -> str:
    calls = turn.get("tool_calls")
    text = turn.get("content") or ""
    return f"{text}\n{json.dumps(calls, ensure_ascii=False, sort_keys=True)}" if calls else text
