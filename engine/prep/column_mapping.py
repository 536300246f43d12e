"""Applies a source's own column names, prompt and system prompt to its rows.

`columns` maps the format's column to the source's (`{instruction: question, output: reply}`). Columns are renamed
before the format is detected. A column that already has the new name is moved to the row's other columns. `prompt` and
`system` are put into the converted conversation, so the format does not parse them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from engine.options.data import SourceOptions
from engine.prep import detect_format
from engine.prep.formats import kto
from engine.prep.formats.canonical import (
    SYSTEM_COLUMNS,
    Canonical,
    abbreviate,
    check_json,
    make_message,
    to_json,
)

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

Converter = Callable[[dict[str, Any]], list[Canonical]]
"""A source row -> canonical rows. Raises ValueError with the reason for a bad row."""


def make_converter(source: SourceOptions, row_format: str) -> Converter:
    """A function that converts this source's rows. Raises ValueError if the format does not allow an option of the
    source."""
    module = detect_format.load(row_format)
    judged = source.format == "auto" and detect_format.find_kind(row_format) == "conversations"
    if not (source.columns or source.prompt or source.system):
        return lambda row: detect_format.convert(row_format, check_judgement(row) if judged else row)
    if detect_format.find_kind(row_format) == "text" and (source.prompt or source.system):
        raise ValueError("prompt and system are for conversations; the rows here are plain text")
    if getattr(module, "EXPANDS", False) and source.prompt:
        raise ValueError(f"a row of the format {row_format} asks several questions of its own: leave prompt out")
    parts = _parse_prompt(source.prompt) if source.prompt else []
    questions: tuple[str, ...] = getattr(module, "QUESTIONS", ())
    groups = _alternatives(row_format)

    def convert(row: dict[str, Any]) -> list[Canonical]:
        mapped, aside = rename_columns(row, source.columns, groups)
        if judged:
            check_judgement(mapped)
        prompt = _fill(parts, mapped | row) if parts else ""
        if prompt and questions and all(mapped.get(name) is None for name in questions):
            mapped = {
                **mapped,
                questions[0]: prompt,
            }  # otherwise the format would reject the row for lack of a question
        found = detect_format.convert(row_format, mapped)
        for canonical in found:
            if aside:
                canonical["columns"] = canonical.get("columns", {}) | {
                    name: check_json(value, name) for name, value in aside.items()
                }
            if prompt:
                _replace_question(canonical, prompt)
            if source.system:
                _prepend_system(canonical, source.system)
        return found

    return convert


def check_columns(source: SourceOptions, there: Collection[str]) -> None:
    """Raises ValueError for a column in `columns` or `prompt` that is not among `there`, the columns of the source's
    rows."""
    listed = detect_format.join_names(sorted(there))
    for ours, own in source.columns.items():
        if own not in there and own != ours:
            hint = f"; columns says the format's name first: {{{own}: {ours}}}" if ours in there else ""
            raise ValueError(f"columns: there is no column {own!r} for {ours}; there are {listed}{hint}")
    if source.prompt:
        known = {*there, *source.columns}
        for _, name in _parse_prompt(source.prompt):
            if name is not None and name not in known:
                raise ValueError(f"prompt: there is no column {{{name}}}; there are {listed}")


def rename_columns(
    row: dict[str, Any], columns: Mapping[str, str], groups: Collection[Collection[str]] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row with the format's column names, and the columns that are set aside: those that had these names before,
    and others of the same group in `groups`, so that a format does not read them in place of the mapped one."""
    if not columns:
        return row, {}
    taken = {own for own in columns.values() if own in row}
    found = {name: value for name, value in row.items() if name not in taken}
    mapped = {ours: row[own] for ours, own in columns.items() if own in row}
    rivals = {name for group in groups if mapped.keys() & group for name in group} | mapped.keys()
    aside = {name: value for name, value in found.items() if name in rivals}
    return {name: value for name, value in found.items() if name not in rivals} | mapped, aside


def _alternatives(row_format: str) -> list[frozenset[str]]:
    """The groups of columns of which a format reads one."""
    module = detect_format.load(row_format)
    groups = [frozenset(getattr(module, name, ())) for name in ("QUESTIONS", "ANSWERS", "LABELS")]
    return [*groups, frozenset(SYSTEM_COLUMNS)]


def check_judgement(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row. Raises ValueError if a row that is to be read as a conversation says that its reply is bad."""
    if (row.get("label") is not None or row.get("kto_tag") is not None) and (name := kto.find_bad_label(row)):
        raise ValueError(
            f"{name} is {abbreviate(row[name])}, which may judge the reply as bad: set format (kto to learn from it, "
            "another one to ignore the column)"
        )
    return row


def unused_columns(source: SourceOptions, row: Mapping[str, Any], found: list[Canonical]) -> list[str]:
    """The columns of a source row that hold something and that neither its format nor the source's prompt reads."""
    columns = found[0].get("columns") if found else None
    if not columns:
        return []
    asked = {name for _, name in _parse_prompt(source.prompt)} if source.prompt else ()
    return [name for name, value in columns.items() if value not in (None, "") and name in row and name not in asked]


def fill_prompt(prompt: str, row: Mapping[str, Any]) -> str:
    """The prompt with each `{column}` replaced by the row's value; `{{` and `}}` are literal braces. Raises
    ValueError."""
    return _fill(_parse_prompt(prompt), row)


def prompt_values(source: SourceOptions, row: dict[str, Any]) -> str:
    """The row's values that fill the source's prompt, one a line, without the prompt's own text. Raises ValueError."""
    assert source.prompt is not None
    there = rename_columns(row, source.columns)[0] | row
    return "\n".join(_prompt_value(name, there) for _, name in _parse_prompt(source.prompt) if name is not None)


def _parse_prompt(prompt: str) -> list[tuple[str, str | None]]:
    """A list of (text, column that follows it or None). Raises ValueError for an unmatched brace."""
    parts: list[tuple[str, str | None]] = []
    text, at = "", 0
    for place in _PLACE.finditer(prompt):
        text += prompt[at : place.start()]
        at = place.end()
        if place[0] in ("{{", "}}"):
            text += place[0][0]
        elif place[1] is None or not place[1].strip():
            raise ValueError(
                f"prompt: {place[0]} at character {place.start() + 1} is not a {{column}}; write a literal brace twice"
            )
        else:
            parts.append((text, place[1].strip()))
            text = ""
    return [*parts, (text + prompt[at:], None)]


def _fill(parts: list[tuple[str, str | None]], row: Mapping[str, Any]) -> str:
    return "".join(text + ("" if name is None else _prompt_value(name, row)) for text, name in parts)


def _prompt_value(name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name)
    if value is None:
        raise ValueError(f"prompt: the row has no {{{name}}}; it has {detect_format.join_names(row)}")
    checked = check_json(value, f"prompt: {{{name}}}")
    return checked if isinstance(checked, str) else to_json(checked)


def _replace_question(canonical: Canonical, prompt: str) -> None:
    """Replace the last user turn by the prompt."""
    turns = canonical["messages" if "messages" in canonical else "prompt"]
    at = next((at for at in reversed(range(len(turns))) if turns[at]["role"] == "user"), None)
    if at is None:
        raise ValueError("the row has no user turn that prompt could replace")
    turns[at] = {**turns[at], "content": prompt}


def _prepend_system(canonical: Canonical, system: str) -> None:
    """Put the system prompt at the beginning unless the conversation has one."""
    turns = canonical["messages" if "messages" in canonical else "prompt"]
    if not turns or turns[0]["role"] != "system":
        turns.insert(0, make_message("system", system))
