"""Finds the question and answer in a row, and replaces them by others; the rest of the row stays unchanged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.options.data import SourceOptions
from engine.prep import detect_format
from engine.prep.column_mapping import Converter, prompt_values, rename_columns
from engine.prep.formats.canonical import Canonical
from engine.tasks.fences import unfence


@dataclass(frozen=True)
class Form:
    """The layout of a source's rows: their format with the source's own column names and prompts."""

    source: SourceOptions
    format: str
    convert: Converter

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether a row has the columns of the format. With a prompt of the source's own it need not have those of the
        question."""
        return bool(self.source.prompt) or bool(
            detect_format.load(self.format).matches(rename_columns(row, self.source.columns)[0])
        )

    def content(self, row: dict[str, Any]) -> Canonical:
        """The canonical row; for a format that expands, the first one. Raises ValueError."""
        return self.convert(row)[0]

    def prompt_values(self, row: dict[str, Any]) -> str | None:
        """The values that fill the source's own prompt; None if it has none. Raises ValueError."""
        return prompt_values(self.source, row) if self.source.prompt else None


class Seed(NamedTuple):
    """A seed row as in its file, and its canonical form (the first, for a format that expands)."""

    row: dict[str, Any]
    form: Form
    content: Canonical
    columns: frozenset[str] = frozenset()
    """The columns of all seed rows of this form."""


class Exchange(NamedTuple):
    """A question and its answer. `text` is the subject of the user's turn, without the instruction before it."""

    text: str
    reply: str


def find_exchange(content: Canonical, instructions: tuple[str, ...]) -> Exchange:
    """The only exchange of a conversation. Its text begins behind one of the `instructions`, else behind the last blank
    line.

    Raises ValueError for a row with no exchange or several.
    """
    turns = [turn for turn in content.get("messages", ()) if turn["role"] != "system"]
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise ValueError("it is not one question and its answer")
    question = turns[0]["content"]
    start = next((len(each) for each in instructions if question.startswith(each)), None)
    text = (question[start:] if start is not None else question.rpartition("\n\n")[2]).strip()
    if not text:
        raise ValueError("its question is empty")
    return Exchange(text, turns[1]["content"])


def replace_exchange(seed: Seed, new: Exchange, instructions: tuple[str, ...]) -> dict[str, Any]:
    """The seed's row with another text and reply. Raises ValueError if the row does not contain the old ones
    literally."""
    old = find_exchange(seed.content, instructions)
    row: dict[str, Any] = _replace_value(seed.row, old, new)
    if find_exchange(seed.form.content(row), instructions) != new:
        raise ValueError(f"its seed's row ({seed.form.format}) cannot hold it")
    return row


def _replace_value(value: Any, old: Exchange, new: Exchange) -> Any:
    if isinstance(value, dict):
        return {name: _replace_value(each, old, new) for name, each in value.items()}
    if isinstance(value, list):
        return [_replace_value(each, old, new) for each in value]
    if value == old.reply:
        return new.reply
    if isinstance(value, str) and old.text in value:
        before, _, after = value.rpartition(old.text)
        return before + new.text + after
    return value


def write_like(example: str, value: Any) -> str:
    """JSON text of `value` in the style of `example`: with its spacing, line breaks and code fence."""
    bare = unfence(example)
    separators = (", ", ": ") if '": ' in bare else (",", ":")
    lines = 2 if "\n" in bare else None
    text = json.dumps(value, ensure_ascii=False, indent=lines, separators=(",", ": ") if lines else separators)
    return f"```json\n{text}\n```" if example.strip() != bare else text
