"""Preference pairs: a question, the better reply in `chosen`, the worse one in `rejected`.

The question is in `prompt` (text or messages), `question`, `instruction` with `input`, `conversations` or `messages`.
Without these, chosen and rejected are whole conversations, and their common beginning is the prompt. A reply is text, a
turn, or a list of turns.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats import alpaca
from engine.prep.formats.canonical import (
    SYSTEM_COLUMNS,
    Canonical,
    EmptyRow,
    Message,
    add_columns,
    add_tools,
    check_messages,
    check_text,
    describe_kind,
    find_system,
    make_message,
    restore_canonical_columns,
)
from engine.prep.formats.cells import find_filled, is_turns, parse_together
from engine.prep.formats.sharegpt import convert_turns

KIND = "pairs"
QUESTIONS = ("prompt", "question", "instruction", "conversations", "messages")
COLUMNS = frozenset({*QUESTIONS, "input", "history", "chosen", "rejected", "tools", *SYSTEM_COLUMNS})


def matches(row: dict[str, Any]) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def convert(row: dict[str, Any]) -> Canonical:
    row = parse_together(row, (*(name for name in ("prompt", "question") if name in row), "chosen", "rejected"))
    before, used = read_question(row)
    chosen, rejected = (_read_reply(row.get(name), name) for name in ("chosen", "rejected"))
    if not used:
        same = next((at for at, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), 0)
        before, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    elif chosen[: len(before)] == before == rejected[: len(before)]:
        chosen, rejected = chosen[len(before) :], rejected[len(before) :]
    if not before:
        raise ValueError(f"there is no question: no {', '.join(QUESTIONS)}, nor do chosen and rejected begin alike")
    for name, reply in (("chosen", chosen), ("rejected", rejected)):
        if not reply or reply[0]["role"] != "assistant":
            raise ValueError(f"{name} does not begin with the assistant's turn")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    found = add_tools({"prompt": before, "chosen": chosen, "rejected": rejected}, row.get("tools"))
    return add_columns(found, row, used | {"chosen", "rejected", "tools"})


def read_question(row: dict[str, Any]) -> tuple[list[Message], frozenset[str]]:
    """The messages before the reply, checked, and the columns that they came from; both empty without a question.
    Raises ValueError."""
    name = find_filled(row, QUESTIONS)
    if not (name and row[name]) and "instruction" in row and row.get("input"):
        name = "instruction"
    if name is None or (row[name] == "" and is_turns(row.get("chosen"))):
        return [], frozenset()
    value, used = row[name], {name}
    system, column = find_system(row)
    if name == "instruction":
        turns, used = alpaca.question_turns(row), {name, "input", "history"}
    elif isinstance(value, list) or name in ("conversations", "messages"):
        turns = system + convert_turns(value, name)
    else:
        turns = [*system, make_message("user", check_text(value, name))]
    return check_messages(turns, name), column | used


def _read_reply(value: Any, name: str) -> list[Message]:
    if isinstance(value, dict):
        value = [value]
    turns = (
        convert_turns(value, name) if isinstance(value, list) else [make_message("assistant", check_text(value, name))]
    )
    try:
        return check_messages(turns, name)
    except EmptyRow as error:
        raise EmptyRow(f"{name}: {error}")
    except ValueError as error:
        raise ValueError(f"{name}: {error}")


def revert(canonical: Canonical) -> dict[str, Any]:
    if "chosen" not in canonical:
        raise ValueError(f"preference cannot hold {describe_kind(canonical)}")
    row: dict[str, Any] = {
        name: canonical[name] for name in ("prompt", "chosen", "rejected", "tools") if name in canonical
    }
    return restore_canonical_columns(row, canonical, convert)
