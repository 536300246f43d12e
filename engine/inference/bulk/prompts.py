"""What is asked in a file: a prompt a line of a text file, or rows of any format that data may have, or with `prompt` or `text`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.inference.request import Asked, Messages, task_named
from engine.prep import detect_format, readers
from engine.prep.formats.canonical import check_messages, conversation_of, make_message

_LOOKED_AT = 100
"""Rows by which a format is told."""
_UNSAID = (
    ("messages", lambda turns: [*turns, {"role": "assistant", "content": "-"}]),
    ("conversations", lambda turns: [*turns, {"from": "gpt", "value": "-"}]),
    ("output", lambda _: "-"),
    ("completion", lambda _: "-"),
)
"""What a row that only asks lacks to be one that trains: formats read those."""


@dataclass(frozen=True)
class Prompt:
    """`asked` is what the model is to answer; `row` what stood in the file, with the `reference` that stood behind what is asked."""

    asked: Asked
    row: Mapping[str, Any]


def read(path: Path, task: str | None, system: str | None) -> list[Prompt]:
    """All prompts of a file, in its order; blank lines of a text file are none. Raises ValueError naming the file and line of a row that
    asks nothing, and for a file without prompts.

    A bare text becomes what `task` makes of it, else a user's turn behind `system`. A conversation is asked as it stands, up to its last
    reply, which is the row's `reference`.
    """
    if path.suffix.lower() == ".txt":
        lines = re.split(r"\r?\n", path.read_text(encoding="utf-8-sig"))
        found = [Prompt(_asking(line, task, system), {"prompt": line}) for line in lines if line.strip()]
    else:
        found = list(_rows(path, task, system))
    if not found:
        raise ValueError(f"{path} has no prompts")
    return found


def _asking(text: str, task: str | None, system: str | None) -> Messages:
    if task is not None:
        wrapped: Messages = task_named(task).messages(text)
        return wrapped
    opening = [make_message("system", system)] if system else []
    return [*opening, make_message("user", text)]


def _rows(path: Path, task: str | None, system: str | None) -> Iterator[Prompt]:
    records = readers.read(path)
    first = list(itertools.islice(records, _LOOKED_AT))
    row_format: str | None = None
    for record in itertools.chain(first, records):
        if record.value is None:
            raise ValueError(f"{path}:{record.line}: {record.reason}")
        row = record.value
        try:
            if (text := _bare(row)) is not None:
                yield Prompt(_asking(text, task, system), row)
                continue
            if turns := _turns(row):
                yield _conversation(turns, row)
                continue
            row_format = row_format or detect_format.detect([each.value for each in first if each.value is not None])
            for canonical in detect_format.convert(row_format, _completed(row)):
                yield _conversation(conversation_of(canonical), row)
        except ValueError as error:
            raise ValueError(f"{path}:{record.line}: {error}") from None


def _bare(row: Mapping[str, Any]) -> str | None:
    return next((row[name] for name in ("prompt", "text") if isinstance(row.get(name), str)), None)


def _turns(row: Mapping[str, Any]) -> Messages:
    """Of a row in OpenAI's words, with or without a reply."""
    given = next((row[name] for name in ("messages", "prompt") if isinstance(row.get(name), list)), None)
    if given is None or not all(isinstance(turn, dict) and "role" in turn for turn in given):
        return []
    return check_messages(given, "messages")


def _completed(row: Mapping[str, Any]) -> dict[str, Any]:
    """With a reply where one is missing, which is taken away again."""
    for name, complete in _UNSAID[1:]:
        turns = row.get(name)
        if name == "conversations" and isinstance(turns, list) and turns and len(turns) % 2:
            return {**row, name: complete(turns)}
    if "instruction" in row and not row.get("output"):
        return {**row, "output": "-"}
    return dict(row)


def _conversation(turns: Messages, row: Mapping[str, Any]) -> Prompt:
    if not turns:
        raise ValueError("it holds plain text, no question: name it prompt or text")
    if turns[-1]["role"] == "assistant":
        *asked, last = turns
        row = {"reference": last["content"], **row}
    else:
        asked = turns
    if not asked:
        raise ValueError("nothing is asked before the reply")
    return Prompt(asked, row)
