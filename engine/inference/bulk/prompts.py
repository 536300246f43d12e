"""The prompts of a file: lines of a text file, or rows of any format of training data, or rows with `prompt` or
`text`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.inference.request import Messages, Prompt
from engine.prep import detect_format, readers
from engine.prep.formats.canonical import check_messages, conversation_of, make_message
from engine.tasks.task import load_task

_LOOKED_AT = 100
"""Rows from which the format is detected."""


@dataclass(frozen=True)
class PromptRow:
    """`prompt` is what the model continues or answers; `row` is the row of the file, with the `reference` reply if the
    row had one."""

    prompt: Prompt
    row: Mapping[str, Any]


def read(path: Path, task: str | None, system: str | None) -> list[PromptRow]:
    """All prompts of a file, in its order; blank lines of a text file are skipped.

    A bare text becomes the conversation of `task`, or else a user's turn after `system`. A conversation is used up to
    its last reply, which becomes the row's `reference`. Raises ValueError with the file and line of a row without a
    prompt, and for a file without prompts.
    """
    if path.suffix.lower() == ".txt":
        lines = re.split(r"\r?\n", path.read_text(encoding="utf-8-sig"))
        rows = [PromptRow(_wrap_text(line, task, system), {"prompt": line}) for line in lines if line.strip()]
    else:
        rows = list(_read_rows(path, task, system))
    if not rows:
        raise ValueError(f"{path} has no prompts")
    return rows


def _wrap_text(text: str, task: str | None, system: str | None) -> Messages:
    if task is not None:
        return load_task(task).messages(text)
    opening = [make_message("system", system)] if system else []
    return [*opening, make_message("user", text)]


def _read_rows(path: Path, task: str | None, system: str | None) -> Iterator[PromptRow]:
    records = readers.read(path)
    first = list(itertools.islice(records, _LOOKED_AT))
    row_format: str | None = None
    for record in itertools.chain(first, records):
        if record.value is None:
            raise ValueError(f"{path}:{record.line}: {record.reason}")
        row = record.value
        try:
            if (text := _find_text(row)) is not None:
                yield PromptRow(_wrap_text(text, task, system), row)
                continue
            if turns := _turns(row):
                yield _conversation(turns, row)
                continue
            row_format = row_format or detect_format.detect([each.value for each in first if each.value is not None])
            for canonical in detect_format.convert(row_format, _add_reply(row)):
                yield _conversation(conversation_of(canonical), row)
        except ValueError as error:
            raise ValueError(f"{path}:{record.line}: {error}") from None


def _find_text(row: Mapping[str, Any]) -> str | None:
    return next((row[name] for name in ("prompt", "text") if isinstance(row.get(name), str)), None)


def _turns(row: Mapping[str, Any]) -> Messages:
    """The turns of a row in OpenAI's format, with or without a reply; empty for other rows."""
    given = next((row[name] for name in ("messages", "prompt") if isinstance(row.get(name), list)), None)
    if given is None or not all(isinstance(turn, dict) and "role" in turn for turn in given):
        return []
    return check_messages(given, "messages")


def _add_reply(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with a placeholder for a missing reply, so that its format can be read."""
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and len(turns) % 2:
        return {**row, "conversations": [*turns, {"from": "gpt", "value": "-"}]}
    if "instruction" in row and not row.get("output"):
        return {**row, "output": "-"}
    return dict(row)


def _conversation(turns: Messages, row: Mapping[str, Any]) -> PromptRow:
    if not turns:
        raise ValueError("it holds plain text, no question: name it prompt or text")
    if turns[-1]["role"] == "assistant":
        *prompt, last = turns
        row = {"reference": last["content"], **row}
    else:
        prompt = turns
    if not prompt:
        raise ValueError("nothing is asked before the reply")
    return PromptRow(prompt, row)
