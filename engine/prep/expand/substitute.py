"""A question and its answer inside a row, and the same row with others in their place: whatever else the row holds stays."""

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
    """What rows of a source look like, and what becomes of them under its own column names and prompts."""

    source: SourceOptions
    format: str
    convert: Converter

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether a row has the columns of the format. A prompt of the source's own stands for those of the question."""
        return bool(self.source.prompt) or bool(
            detect_format.load(self.format).matches(rename_columns(row, self.source.columns)[0])
        )

    def content(self, row: dict[str, Any]) -> Canonical:
        """The canonical row, the first for formats that expand. Raises ValueError."""
        return self.convert(row)[0]

    def prompt_values(self, row: dict[str, Any]) -> str | None:
        """What fills the source's own prompt; None where it has none. Raises ValueError."""
        return prompt_values(self.source, row) if self.source.prompt else None


class Seed(NamedTuple):
    """A seed row as it stood in its file, and its canonical form (the first, for formats that expand)."""

    row: dict[str, Any]
    form: Form
    content: Canonical
    columns: frozenset[str] = frozenset()
    """Of all seed rows of this form."""


class Exchange(NamedTuple):
    """`text` is what the user's turn is about, without the instruction before it."""

    text: str
    reply: str


def find_exchange(content: Canonical, instructions: tuple[str, ...]) -> Exchange:
    """The only exchange of a conversation. The text begins behind one of `instructions`, else behind the last blank line.

    Raises ValueError for rows that hold no exchange, or several.
    """
    turns = [turn for turn in content.get("messages", ()) if turn["role"] != "system"]
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise ValueError("it is not one question and its answer")
    asked = turns[0]["content"]
    start = next((len(each) for each in instructions if asked.startswith(each)), None)
    text = (asked[start:] if start is not None else asked.rpartition("\n\n")[2]).strip()
    if not text:
        raise ValueError("its question is empty")
    return Exchange(text, turns[1]["content"])


def replace_exchange(seed: Seed, new: Exchange, instructions: tuple[str, ...]) -> dict[str, Any]:
    """The seed's row with another text and another reply. Raises ValueError where the row does not hold them word for word."""
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
    """JSON text of `value` in the manner of `example`: its blanks, its lines, its fence."""
    bare = unfence(example)
    separators = (", ", ": ") if '": ' in bare else (",", ":")
    lines = 2 if "\n" in bare else None
    text = json.dumps(value, ensure_ascii=False, indent=lines, separators=(",", ": ") if lines else separators)
    return f"```json\n{text}\n```" if example.strip() != bare else text
