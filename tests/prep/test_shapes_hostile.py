"""Rows of any content: a shape gives canonical rows that JSON can hold, or a ValueError, and nothing else ever."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.options.data import SourceOptions
from engine.prep import column_mapping, detect_format
from engine.prep.formats import FORMATS
from engine.prep.formats.canonical import ROLES

KEYS = [
    *("text", "messages", "tools", "conversations", "system", "instruction", "input", "output", "history", "prompt"),
    *("completion", "question", "answer", "context", "target", "content", "summary", "chosen", "rejected", "label"),
    *("kto_tag", "standpoints", "counter_questions", "columns", "id", "arguments"),
]
INNER = [
    *("role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text", "weight"),
    *("function_call", "id", "standpoints", "tool_call_id"),
]
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(
        ["\ud800", "\x00", "[]", "{", '{"name": "f"}', "function_call", "user", "assistant", "human", "gpt", *ROLES]
    )
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES) | leaves, "content": st.text(max_size=4) | anything},
        optional={"tool_calls": anything, "weight": anything, "name": anything},
    ),
    max_size=3,
)
hostile = st.dictionaries(st.sampled_from(KEYS), anything | turns, max_size=7)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(hostile)
def test_any_row_is_converted_or_refused_and_what_is_converted_is_json(row: dict[str, Any]) -> None:
    for shape in FORMATS:
        check(shape, row)


def check(shape: str, row: dict[str, Any]) -> None:
    assert detect_format.load(shape).matches(row) in (True, False)
    try:
        found = detect_format.convert(shape, row)
    except ValueError as error:
        assert str(error)
        return
    for canonical in found:
        written = json.dumps(canonical, ensure_ascii=False, allow_nan=False).encode()
        assert json.loads(written) == canonical
        for name in FORMATS:
            try:
                row = detect_format.load(name).revert(canonical)
            except ValueError:
                continue
            assert canonical in detect_format.convert(name, row)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    hostile,
    st.sampled_from(sorted(FORMATS)),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(KEYS), max_size=3),
    st.sampled_from([None, "x", "{input}", "{id} {columns}", "{{}}"]),
    st.sampled_from([None, "s"]),
)
def test_so_it_is_with_mapped_columns_and_prompts(
    row: dict[str, Any], shape: str, columns: dict[str, str], prompt: str | None, system: str | None
) -> None:
    source = SourceOptions(source="x", columns=columns, prompt=prompt, system=system)
    try:
        found = column_mapping.make_converter(source, shape)(row)
    except ValueError as error:
        assert str(error)
        return
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("shape", sorted(FORMATS))
def test_values_nested_too_deeply_are_refused(shape: str) -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    row = dict.fromkeys(KEYS, deep)
    with pytest.raises(ValueError):
        detect_format.convert(shape, row)
    text = {"text": "t", "prompt": "q", "completion": "a", "note": deep}
    for name in ("text", "prompt_completion"):
        with pytest.raises(ValueError, match="note cannot be represented in JSON"):
            detect_format.convert(name, text)
