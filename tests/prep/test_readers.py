"""Readers: every record with its place, every bad one with its reason, whatever kind of file it is and however it is
packed."""

from __future__ import annotations

import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from engine.prep import readers
from engine.prep.files import KINDS, delimited, json_document, lines
from engine.prep.files.record import NOT_UTF8, Record

ROWS: list[dict[str, Any]] = [{"question": 'ä, "b"\nc', "answer": "多语言 🎉"}, {"question": "q;|\t", "answer": "a"}]


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
        (4, "a row is a JSON object, not a list"),
        (5, NOT_UTF8),
    ]
    for record in records:
        assert content[: record.offset].count(b"\n") == record.line - 1
        assert content[record.offset : record.end] == content.split(b"\n")[record.line - 1] + b"\n" * (record.line < 6)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '{"text":"' + "x" * 5000 + '"}\n{"text":"next"}\n'),
        ("rows.json", '[{"text":"' + "x" * 5000 + '"},\n{"text":"next"}]'),
        ("rows.json", '[{"text":[' + "[1],{}," * 500 + '3]},\n{"text":"next"}]'),
        ("rows.txt", "x" * 5000 + "\nnext\n"),
        ("rows.csv", "text\n" + "x" * 5000 + "\nnext\n"),
        ("rows.csv", 'text\n"' + "x\n" * 2500 + '"\nnext\n'),
    ],
)
def test_a_row_beyond_the_limit_is_rejected_and_the_next_is_read(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (lines, json_document, delimited):
        monkeypatch.setattr(module, "LONGEST_LINE", 100)
    monkeypatch.setattr(json_document, "_BLOCK", 64)
    path = tmp_path / name
    path.write_text(content)
    records = list(readers.read(path))
    assert "longer" in records[0].reason and records[0].value is None
    assert (
        records[-1].value == {"text": "next"} and records[-1].line == content[: content.index("next")].count("\n") + 1
    )
    assert all(record.reason for record in records[:-1])


# ── JSON documents ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_lists_give_places_that_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"text": "ä"},\n  7,\n  {"text":\n "b"}\n]\n', encoding="utf-8")
    records = list(readers.read(path))
    assert [(record.line, record.value) for record in records] == [(2, {"text": "ä"}), (3, None), (4, {"text": "b"})]
    content = path.read_bytes()
    assert [readers.decode(content[each.offset : each.end])[0] for each in records] == [each.value for each in records]


@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}',
        '[{"a": 1},',
        '[{"a": 1} {"b": 2}]',
        '[{"a": 1},, {"b": 2}]',
        '[{"a": 1}] {"b": 2}',
        '[{"a": "never ends',
        "[{]",
        "[" * 100_000,
        "hello",
        '"hello"',
        '{"a": 1}, {"b": 2}',
        b"\xff\xfe[\0",
    ],
)
def test_broken_json_is_one_clear_error(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"^rows\.json"):
        list(readers.read(path))


def test_a_bad_row_of_a_list_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(
        b'[{"a": "\xff"}, {"a": 1, }, NaN, {"a": \0}, "[{", {"a": "\\"}]"}, {"a": '
        + b"[" * 5000
        + b"]" * 5000
        + b"}\n]"
    )
    records = list(readers.read(path))
    assert [record.value for record in records] == [None, None, None, None, None, {"a": '"}]'}, None]
    assert all(record.reason for record in records if not record.value)


def test_json_may_hold_one_object_several_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for content, values in (
        ('{"a":\n 1}\n', [{"a": 1}]),
        ('{"a":\n 1}\n{"b": 2}', [{"a": 1}, {"b": 2}]),
        ('{"a": 1}\n{"b": \n{"c": 3}\n', [{"a": 1}, None, {"c": 3}]),
        ("[]", []),
        ("", []),
        ('﻿[{"a": 1},]', [{"a": 1}]),
    ):
        path.write_text(content, encoding="utf-8")
        assert [record.value for record in readers.read(path)] == values, content


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(json_values, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_lists_are_cut_into_the_same_rows_wherever_blocks_end(
    rows: list[Any], block: int, indent: int | None, escaped: bool
) -> None:
    path = Path(_scratch()) / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    content = path.read_bytes()
    before, json_document._BLOCK = json_document._BLOCK, block
    try:
        records = list(readers.read(path))
    finally:
        json_document._BLOCK = before
    assert [json.loads(content[record.offset : record.end]) for record in records] == rows
    assert [record.value for record in records] == [row if isinstance(row, dict) else None for row in rows]
    assert [record.line for record in records] == [content[: record.offset].count(b"\n") + 1 for record in records]


_FOLDERS: list[Any] = []


def _scratch() -> str:
    """One folder for all generated cases: hypothesis calls a test many times with the same fixtures."""
    import tempfile

    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory())
    return str(_FOLDERS[0].name)


# ── CSV and text ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_rows_keep_their_places_and_bad_ones_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    content = (
        "﻿question,answer\r\n"
        '"two\r\nlines","with ""quotes"""\r\n'
        "\r\n"
        "only one\r\n"
        "one,two,three\r\n"
        "bad\xff,x\r\n"
        '"unclosed,x\r\n'
        "after,it\r\n"
        '"junk"behind,x\r\n'
        "last,row"
    ).encode()
    content = content.replace("\xff".encode(), b"\xff")
    path.write_bytes(content)
    records = list(readers.read(path))
    assert [(record.line, record.value) for record in records if record.value] == [
        (2, {"question": "two\r\nlines", "answer": 'with "quotes"'}),
        (9, {"question": "after", "answer": "it"}),
        (11, {"question": "last", "answer": "row"}),
    ]
    reasons = [(record.line, record.reason) for record in records if not record.value]
    assert [line for line, _ in reasons] == [5, 6, 7, 8, 10]
    for (_, reason), words in zip(
        reasons,
        ("1 fields, but the header has 2", "3 fields, but", "not UTF-8", "a quote opens here", "expected after"),
        strict=True,
    ):
        assert words in reason
    for record in records:
        assert content[: record.offset].count(b"\n") == record.line - 1
    assert content[records[0].offset : records[0].end] == b'"two\r\nlines","with ""quotes"""\r\n'
    assert [record.offset for record in records[1:-2]] == [
        content.index(start) for start in (b"only", b"one,two", b"bad", b'"unclosed', b"after")
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    others = [each for each in delimited.DELIMITERS if each != delimiter]
    rows = [["id", "text"], *([str(number), f'"a{others[0]} {others[1] * number}b"'] for number in range(5))]
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    assert [record.value for record in readers.read(path)][1] == {"id": "1", "text": f"a{others[0]} {others[1]}b"}


def test_a_single_column_has_no_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\nplain\n"with, comma"\n')
    assert [record.value for record in readers.read(path)] == [{"text": "plain"}, {"text": "with, comma"}]


@pytest.mark.parametrize("header", ["a,a", "a,,b", '"a,b', "\xff,b"])
def test_a_header_that_names_no_columns_is_one_clear_error(header: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(f"{header}\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^rows\.csv:1: the first line must name the columns: "):
        list(readers.read(path))


def test_a_long_field_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"id,text\n1,{'x' * 200_000}\n")
    assert [len(record.value["text"]) for record in readers.read(path) if record.value] == [200_000]


def test_text_gives_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("﻿first\r\n\n  \nsecond ä\n\xff\nlast".encode().replace("\xff".encode(), b"\xff"))
    records = list(readers.read(path))
    assert [(record.line, record.value) for record in records] == [
        (1, {"text": "first"}),
        (4, {"text": "second ä"}),
        (5, None),
        (6, {"text": "last"}),
    ]
    assert records[2].reason == NOT_UTF8


# ── parquet and arrow ──────────────────────────────────────────────────────────────────────────────────────────────


def test_columnar_values_are_as_json_has_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    turns = [[{"role": "user", "content": "q"}], []]
    table = pa.table(
        {
            "messages": turns,
            "day": [date(2024, 2, 29), None],
            "price": [Decimal("1.10"), None],
            "share": [float("nan"), 0.5],
            "bytes": [b"\xff", b""],
        }
    )
    parquet.write_table(table, path)
    records = list(readers.read(path))
    assert records[0] == Record(
        str(path),
        1,
        0,
        0,
        {"messages": turns[0], "day": "2024-02-29", "price": "1.10", "share": None, "bytes": "/w=="},
    )
    assert [record.line for record in records] == [1, 2]


def test_a_row_that_is_not_utf8_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    text = pa.array([b"one", b"\xff", b"three"]).cast(pa.binary()).view(pa.string())
    batch = pa.record_batch({"text": text})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    records = list(readers.read(path))
    assert [record.value for record in records] == [{"text": "one"}, None, {"text": "three"}]
    assert records[1].line == 2 and "UTF8" in records[1].reason


def test_many_row_groups_and_batches_are_numbered_through(tmp_path: Path) -> None:
    table = pa.table({"number": list(range(5000))})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=700)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    for name in ("rows.parquet", "rows.arrow"):
        told: list[int] = []
        records = list(readers.read(tmp_path / name, told.append))
        assert [(record.line, record.value) for record in records] == [(at + 1, {"number": at}) for at in range(5000)]
        assert told == sorted(told) and told[-1] == (tmp_path / name).stat().st_size


# ── all kinds ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_kind(path: Path, rows: list[dict[str, str]]) -> None:
    """The rows as a file of the kind that the first suffix says."""
    kind = path.suffixes[0]
    table = pa.Table.from_pylist(rows)
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".parquet":
        parquet.write_table(table, path)
    elif kind == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif kind == ".txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def pack(path: Path, ending: str) -> Path:
    """The packed file beside this one."""
    packed = path.with_name(path.name + ending)
    packed.write_bytes((gzip if ending == ".gz" else zstd).compress(path.read_bytes()))
    return packed


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_rows_that_were_written_packed_or_not(kind: str, ending: str, tmp_path: Path) -> None:
    rows = [{"text": "ä b"}, {"text": "多语言 🎉"}] if kind == ".txt" else ROWS
    path = tmp_path / f"rows{kind}"
    write_kind(path, rows)
    records = list(readers.read(pack(path, ending) if ending else path))
    assert [record.value for record in records] == rows
    plain = list(readers.read(path))
    assert [record[1:] for record in plain] == [record[1:] for record in records]
    assert readers.check_suffix(tmp_path / f"ROWS{kind.upper()}{ending}") == kind + ending


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_members_one_after_the_other_are_read_through(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    packed = pack(path, ending)
    packed.write_bytes(packed.read_bytes() * 3)
    assert [record.line for record in readers.read(packed)] == [1, 2, 3]


def test_names_that_tell_no_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read \.doc; known are \.jsonl, \.json, .* packed as \.gz or \.zst"):
        readers.read(tmp_path / "rows.doc")
    with pytest.raises(ValueError, match=r"rows\.gz: cannot read \.gz; known"):
        readers.read(tmp_path / "rows.gz")
    with pytest.raises(ValueError, match="a file without suffix"):
        readers.read(tmp_path / "rows")
    with pytest.raises(ValueError, match="there is no file"):
        readers.read(tmp_path / "none.jsonl")
