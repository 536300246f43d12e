"""Generated rows of every format, written as every kind of file: read back as they were meant, and every column of a
source is either used or counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.options.data import SourceOptions
from engine.prep import column_mapping, detect_format, readers
from engine.prep.formats import FORMATS
from engine.prep.formats.canonical import Canonical
from engine.prep.stages.context import Context
from engine.prep.stages.validate import CANONICAL, SourceFile, validate
from tests.prep.test_formats import GRAPH, TOOL, call, said

# ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t", exclude_characters="\ufeff"), max_size=12
) | st.sampled_from(
    ["句子\nb", 'a "quoted", one', "a\tb;c|d", "e\u0301", "👩‍👩‍👧", "  x = 1", "[1, 2]", "{'a'}", "null", "NaN", "-"]
)
words = texts.filter(lambda text: bool(text.strip()))
empty = st.sampled_from(["", None])
calls = st.lists(
    st.builds(
        lambda x, text: call(**({"x": x} if x else {}), **({"y": text} if text else {})), st.integers(0, 9), texts
    ),
    min_size=1,
    max_size=2,
)


def asked(content: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda text: said("user", text), content)


replies = st.builds(lambda text: said("assistant", text), words) | st.builds(
    lambda text, made: {"role": "assistant", "content": text, "tool_calls": made}, st.none() | words, calls
)
turns = st.builds(
    lambda system, pairs: [*([said("system", system)] if system else []), *(turn for pair in pairs for turn in pair)],
    st.none() | words,
    st.lists(st.tuples(asked(words), replies), min_size=1, max_size=3),
)
spoken = st.builds(
    lambda pairs: [
        turn for one, two in pairs for turn in ({"from": "human", "value": one}, {"from": "gpt", "value": two})
    ],
    st.lists(st.tuples(words, words), min_size=1, max_size=2),
)
labels = st.sampled_from([True, False, 1, 0, "true", "Bad", "desirable", "no"])
tools = st.none() | st.just([TOOL])
answer = st.builds(lambda text: [said("assistant", text)], words)
different = st.lists(words, min_size=2, max_size=2, unique=True)


def row(**columns: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(columns)


def pair(chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {**more, "chosen": chosen, "rejected": rejected}


ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "text": row(text=words),
    "messages": row(messages=turns, tools=tools),
    "sharegpt": row(conversations=spoken, system=empty | words, tools=tools) | row(conversations=turns),
    "alpaca": row(
        instruction=words,
        input=empty | words,
        output=words,
        system=empty | words,
        history=st.none() | st.lists(st.tuples(words, words).map(list), max_size=2),
    )
    | row(instruction=empty, input=words, output=words, system_prompt=empty | words),
    "prompt_completion": row(prompt=words, completion=words, system=empty | words)
    | row(question=words, response=words, system_prompt=words)
    | row(prompt=asked(words).map(lambda turn: [turn]), completion=answer, tools=tools),
    "context_target": row(context=words, target=words),
    "content_summary": row(content=words, summary=words),
    "preference": st.builds(lambda two, asked: pair(*two, prompt=asked), different, words)
    | st.builds(lambda two, asked, more: pair(*two, instruction=asked, input=more), different, words, empty | words)
    | st.builds(lambda two, asked: pair(*([asked, said("assistant", each)] for each in two)), different, asked(words)),
    "kto": row(prompt=words, completion=words, label=labels)
    | row(messages=turns, label=labels)
    | row(instruction=words, input=empty, output=words, kto_tag=labels),
    "thought_graph": st.builds(lambda asked: {**GRAPH, "question": asked}, words),
}
"""Each as the format's documentation has it; columns that are not there in a row may be null."""
OTHERS = st.dictionaries(
    st.sampled_from(["id", "score", "source", "Unnamed: 0", "图", "note", "answer", "text", "__index_level_0__"]),
    st.none() | st.integers(-5, 2**40) | st.floats(-1, 1) | texts,
    max_size=3,
)  # fmt: skip

SOURCES = st.sampled_from(sorted(FORMATS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(st.tuples(OTHERS, ROWS[name]).map(lambda both: both[0] | both[1]), min_size=1, max_size=4),
    )
)

# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_cell(value: Any) -> Any:
    """A value as tools put it into a table that holds only text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in rows for name in each))


def write_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)


def write_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


def write_table(rows: list[dict[str, Any]], delimiter: str) -> str:
    made = io.StringIO()
    writer = csv.writer(made, delimiter=delimiter, lineterminator="\n")
    names = names_of(rows)
    writer.writerow(names)
    writer.writerows([as_cell(each.get(name)) for name in names] for each in rows)
    return made.getvalue()


def write_columns(rows: list[dict[str, Any]], path: Path) -> None:
    """Parquet or Arrow: nested where the columns have one type, else as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(nested: bool) -> Any:
        columns = {name: [each.get(name) for each in rows] for name in names_of(rows)}
        if not nested:
            columns = {name: [as_cell(value) for value in values] for name, values in columns.items()}
        arrays = {}
        for name, values in columns.items():
            mixed = len({type(value) for value in values if value is not None}) > 1
            arrays[name] = pa.array([None if value is None else str(value) for value in values] if mixed else values)
        return pa.table(arrays)

    try:
        made = table(nested=True)
        pq.write_table(made, path.with_suffix(".parquet"))
    except (pa.ArrowException, TypeError):
        made = table(nested=False)
        pq.write_table(made, path.with_suffix(".parquet"))
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file, pa.ipc.new_stream(file, made.schema) as stream:
        stream.write_table(made)


TEXT_KINDS = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
    "list.jsonl": write_json,
    "rows.csv": lambda rows: write_table(rows, ","),
    "rows.tsv": lambda rows: write_table(rows, "\t"),
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gzip"]


def write(rows: list[dict[str, Any]], kind: str, encoding: str, folder: Path) -> tuple[Path, str | None]:
    """The file, and the encoding that a user must name."""
    path = folder / kind
    if kind in ("rows.parquet", "rows.arrow"):
        write_columns(rows, path)
        return path, None
    content = TEXT_KINDS[kind](rows)
    if encoding == "gzip":
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(content.encode()))
        return path, None
    path.write_bytes(content.encode(encoding))
    return path, encoding if encoding == "gb18030" else None


PHASES = (Phase.generate, Phase.shrink)

# ── properties ─────────────────────────────────────────────────────────────────────────────────────────────────────


def content_of(found: list[Canonical]) -> list[Canonical]:
    return [{name: value for name, value in each.items() if name != "columns"} for each in found]


def try_convert(row_format: str, value: dict[str, Any]) -> list[Canonical] | None:
    try:
        return content_of(detect_format.convert(row_format, value))
    except ValueError:
        return None


def check(row_format: str, rows: list[dict[str, Any]], kind: str, encoding: str, folder: Path) -> None:
    path, named = write(rows, kind, encoding, folder)
    source = SourceOptions(source=path.name, format=row_format, encoding=named)
    convert = column_mapping.make_converter(source, row_format)
    records = list(readers.read(path, encoding=named))
    assert len(records) == len(rows), [record.reason for record in records]
    counted: dict[str, int] = {}
    for record, meant in zip(records, rows, strict=True):
        assert record.value is not None, record.reason
        found = convert(record.value)
        assert content_of(found) == content_of(detect_format.convert(row_format, meant)), record.value
        unused = column_mapping.unused_columns(source, record.value, found)
        for name, value in record.value.items():
            without = {key: each for key, each in record.value.items() if key != name}
            if name in unused:
                assert try_convert(row_format, without) == content_of(found), f"{name} is used"
                counted[name] = counted.get(name, 0) + 1
            elif value not in (None, "", [], "[]", {}) and str(value) not in map(str, without.values()):
                assert try_convert(row_format, without) != content_of(found), f"{name} is neither used nor counted"
    context = Context(folder / "work", 1, lambda *_: None, (str(path),))
    context.folder.mkdir()
    file = SourceFile(0, 0, path, source, row_format)
    counts = validate([file], CANONICAL, folder / "out", folder / "rejects", context)
    assert (counts["good"], counts["rejected"], counts["unused_columns"]) == (len(rows), 0, counted)


EXAMPLES = 600 if "COCKPIT_LONG_TESTS" in os.environ else 200


@pytest.mark.parametrize("examples", [50, pytest.param(EXAMPLES, marks=pytest.mark.slow)])
def test_rows_come_back_from_every_file_and_no_column_is_lost(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each generated source is written as every kind of file: to generate it takes longer than to read it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    memory = Path("/dev/shm")

    @settings(max_examples=examples, deadline=None, derandomize=True, phases=PHASES)
    @given(SOURCES, st.sampled_from(ENCODINGS))
    def hold(made: tuple[str, list[dict[str, Any]]], encoding: str) -> None:
        for kind in (*TEXT_KINDS, "rows.parquet", "rows.arrow"):
            with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
                check(*made, kind, encoding, Path(folder))

    hold()
