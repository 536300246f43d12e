"""Readers: every record with its place, every bad one with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.prep import readers


def test_jsonl_records_carry_line_and_byte_offset(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['﻿{"text":"ä"}', "", '{"text":', "[1]", '{"text":"\xff"}', '{"text":"last"}']
    content = "\n".join(lines).encode().replace("\xff".encode(), b"\xff")
    path.write_bytes(content)
    records = list(readers.read(path))
    assert [(record.line, record.value) for record in records if record.value] == [
        (1, {"text": "ä"}),
        (6, {"text": "last"}),
    ]
    assert [(record.line, record.reason.split(":")[0]) for record in records if not record.value] == [
        (3, "not JSON"),
        (4, "a row is a JSON object, not list"),
        (5, "not JSON"),
    ]
    for record in records:
        assert content[: record.offset].count(b"\n") == record.line - 1
        assert content[record.offset : record.end] == content.split(b"\n")[record.line - 1] + b"\n" * (record.line < 6)


def test_a_line_beyond_the_limit_is_rejected_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text":"' + "x" * 5000 + '"}\n{"text":"next"}\n')
    first, second = readers.read(path)
    assert (first.value, second.line, second.value) == (None, 2, {"text": "next"})
    assert "longer" in first.reason and second.offset == first.end


def test_json_lists_give_places_that_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"text": "ä"},\n  7,\n  {"text":\n "b"}\n]\n', encoding="utf-8")
    records = list(readers.read(path))
    assert [(record.line, record.value) for record in records] == [(2, {"text": "ä"}), (3, None), (4, {"text": "b"})]
    content = path.read_bytes()
    assert [readers.decode(content[each.offset : each.end])[0] for each in records] == [each.value for each in records]


@pytest.mark.parametrize("content", ['[{"a": 1}', '[{"a": 1} {"b": 2}]', "[{]", "[" * 100_000, b"\xff\xfe"])
def test_broken_json_is_one_clear_error(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"rows\.json"):
        list(readers.read(path))


def test_unknown_suffixes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read \.doc; known are \.jsonl, \.json"):
        readers.read(tmp_path / "rows.doc")
