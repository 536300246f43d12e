"""Files as other tools write them: read as they are meant, or refused with a reason that every verb gives."""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cockpit.widgets.row_view import facts
from engine.evaluation.predictions import read_predictions
from engine.options.data import SourceOptions
from engine.prep import readers, sources, splits
from engine.prep.browse import Browser
from engine.prep.files.record import NOT_UTF8
from engine.prep.prepare import prepare
from engine.prep.stages.validate import reason_class
from engine.prep.verbs import clean, convert, inspect, split, validate
from engine.protocol.home import Home
from engine.workers.prepare import list_warnings
from tests.prep.conftest import ProfileOver, chat, write

ROWS = [{"instruction": f"q{number}", "output": "ä 句"} for number in range(3)]
TURNS = [[{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "ä 句"}] for number in range(3)]


def run(verb: Any, home: Home, file: Path | str, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"format": "auto", "encoding": None, "processes": 1, "out": None, "force": False}
    arguments = argparse.Namespace(file=str(file), **(defaults | options))
    found: dict[str, Any] = verb.run(home, arguments, lambda *_: None)
    return found


def values(path: Path, encoding: str | None = None) -> list[Any]:
    return [record.value or record.reason for record in readers.read(path, encoding=encoding)]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_index_that_pandas_writes_is_one_more_column(suffix: str, bare_home: Home, tmp_path: Path) -> None:
    import pandas

    path, delimiter = tmp_path / f"rows.{suffix}", {"csv": ",", "tsv": "\t"}[suffix]
    pandas.DataFrame(ROWS).to_csv(path, sep=delimiter)
    assert values(path) == [{"Unnamed: 0": str(number), **row} for number, row in enumerate(ROWS)]
    assert run(inspect, bare_home, path)["unused_columns"] == {"Unnamed: 0": 3}
    assert run(validate, bare_home, path)["unused_columns"] == {"Unnamed: 0": 3}
    pandas.read_csv(path, sep=delimiter).to_csv(path, sep=delimiter)  # once more
    assert run(inspect, bare_home, path)["unused_columns"] == {"Unnamed: 0.1": 3, "Unnamed: 0": 3}


def test_structs_of_a_table_lose_the_nulls_that_fill_them(tmp_path: Path) -> None:
    calls = [[{"function": {"name": "f", "arguments": each}}] for each in ({"x": 1}, {"y": "z"})]
    rows = [{"turns": [{"content": "c"}, {"calls": each}], "note": None, "list": [None, 1]} for each in calls]
    for path in (parquet(tmp_path / "rows.parquet", rows),):
        assert values(path) == rows


# ── names and content ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_a_link_into_the_hubs_cache_counts_by_its_own_name(suffix: str, bare_home: Home, tmp_path: Path) -> None:
    blob = tmp_path / "datasets--org--set/blobs" / ("ab12" * 10)
    blob.parent.mkdir(parents=True)
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if suffix == ".parquet":
        parquet(tmp_path / "made.parquet", ROWS).rename(blob)
    elif suffix == ".csv":
        blob.write_text("instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in ROWS))
    else:
        blob.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    link = tmp_path / f"datasets--org--set/snapshots/cd34/rows{suffix}"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    for file in (link, link.parent) if suffix == ".csv" else (link, link.parent, blob):
        (path,) = sources.list_files(str(file), tmp_path)
        assert values(path) == ROWS
        assert run(inspect, bare_home, file)["rows"] == run(validate, bare_home, file)["good"] == 3


def test_a_file_without_a_name_or_content_that_tells_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"instruction,output\nq,a\n", b"\x1f\x8bnot packed", b"\0" * 100):
        (tmp_path / "blob").write_bytes(content)
        with pytest.raises(ValueError, match="cannot read a file without suffix"):
            sources.list_files("blob", tmp_path)


DOCUMENTS = {
    "a list over several lines": "[\n  " + ",\n  ".join(map(json.dumps, ROWS)) + "\n]\n",
    "a list in one line": json.dumps(ROWS),
    "a list whose first line is broken off": json.dumps(ROWS).replace("}, {", "},\n{"),
    "objects over several lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "an indented list": json.dumps(ROWS, indent=2),
    "a list behind a mark and blank lines": "\ufeff\n\n" + json.dumps(ROWS, indent=2),
}


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=DOCUMENTS)
def test_json_that_is_called_jsonl_is_read_as_json_by_every_verb(content: str, bare_home: Home, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    assert values(path) == ROWS
    assert run(inspect, bare_home, path)["rows"] == 3
    told = run(validate, bare_home, path, out=str(tmp_path / "out"))
    assert (told["rows"], told["good"]) == (3, 3)
    assert list(map(json.loads, (tmp_path / "out/rows.jsonl").read_text().splitlines())) == ROWS
    assert run(convert, bare_home, path, to="messages", out=str(tmp_path / "to.jsonl"))["converted"] == 3


def test_a_bad_line_at_the_beginning_is_a_bad_line(bare_home: Home, tmp_path: Path) -> None:
    for first in ("[1]", '[{"a": 1}]', '{"instruction": ', "["):
        path = write(tmp_path / "rows.jsonl", first, *ROWS)
        if first != "[":
            assert values(path)[1:] == ROWS
            assert run(validate, bare_home, path)["good"] == 3
        told = {}
        for verb in (inspect, validate):
            try:
                told[verb] = run(verb, bare_home, path)["rejected"]
            except ValueError as error:
                told[verb] = str(error)
        assert told[inspect] == told[validate]


# ── encodings ──────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = {
    "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "json": json.dumps(ROWS, ensure_ascii=False, indent=1),
    "csv": "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in ROWS),
    "txt": "ä 句\n句 ä\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "gb18030", "utf-16-le", "utf-16-be"])
def test_text_is_read_in_its_encoding_or_the_option_is_named(
    encoding: str, kind: str, bare_home: Home, tmp_path: Path
) -> None:
    path, expected = tmp_path / f"rows.{kind}", [{"text": line} for line in KINDS["txt"].splitlines()]
    path.write_bytes(KINDS[kind].encode(encoding))
    marked = encoding in ("utf-8-sig", "utf-16", "utf-32")
    expected = expected if kind == "txt" else ROWS
    assert values(path, None if marked else encoding) == expected
    assert values(path, "utf-8" if encoding == "utf-8-sig" else encoding) == expected, "a mark and the option agree"
    told = [run(verb, bare_home, path, encoding=None if marked else encoding) for verb in (inspect, validate)]
    assert [each["rows"] for each in told] == [len(expected)] * 2
    if not marked:
        reasons = []
        for verb in (inspect, validate):
            try:
                reasons.append(json.dumps(run(verb, bare_home, path)["reasons"]))
            except ValueError as error:
                reasons.append(str(error))
        assert all("encoding" in reason for reason in reasons), reasons


def test_a_byte_that_an_encoding_does_not_have_spoils_one_row(bare_home: Home, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False).encode("gbk") for row in [{"text": "句"}] * 3]
    path.write_bytes(b"\n".join([lines[0], b'{"text": "\xff"}', lines[2]]))
    assert values(path, "gbk") == [{"text": "句"}, NOT_UTF8, {"text": "句"}]
    assert run(validate, bare_home, path, encoding="gbk")["reasons"] == {reason_class(NOT_UTF8): 1}
    with pytest.raises(ValueError, match="--encoding klingon: there is no such encoding"):
        run(inspect, bare_home, path, encoding="klingon")
    with pytest.raises(ValueError, match="'rot13' is not a known encoding"):
        SourceOptions(source="x", encoding="rot13")


def test_predictions_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps({"reply": "a", "reference": "b"}) + "\n", encoding="utf-8-sig")
    assert [entry["reply"] for entry in read_predictions(path)] == ["a"]


# ── splits of a folder ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "split_of_it"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("test-00000-of-00001.parquet", "test"),
        ("data/validation-00000-of-00002.parquet", "validation"),
        ("alpaca_dev.jsonl", "validation"),
        ("Test.csv", "test"),
        ("train/rows.csv", "train"),
        ("test/train-like.csv", "train"),
        ("val/part1.jsonl", "validation"),
        ("rows.jsonl", None),
        ("contest.csv", None),
        ("latest.csv", None),
        ("trainer.csv", None),
        ("train_test.csv", None),
    ],
)
def test_names_tell_splits(name: str, split_of_it: str | None) -> None:
    assert splits.find_split(Path(name)) == split_of_it


def fill(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, {"instruction": f"q{number}", "output": name})
    return folder


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("train-0.jsonl", "test-0.jsonl"), {"train": ["train-0.jsonl"], "test": ["test-0.jsonl"]}),
        (("rows.jsonl", "test.jsonl"), {"train": ["rows.jsonl"], "test": ["test.jsonl"]}),
        (("rows.jsonl", "train.jsonl"), {"train": ["rows.jsonl", "train.jsonl"]}),
        (("test-0.jsonl", "test-1.jsonl"), {"train": ["test-0.jsonl", "test-1.jsonl"]}),
        (("a/train/x.jsonl", "a/dev/x.jsonl"), {"train": ["a/train/x.jsonl"], "validation": ["a/dev/x.jsonl"]}),
        (("a.jsonl", "b.jsonl"), {"train": ["a.jsonl", "b.jsonl"], "validation": ["a.jsonl", "b.jsonl"]}),
    ],
)
def test_a_folder_gives_each_part_its_own_files(
    names: tuple[str, ...], taken: dict[str, list[str]], tmp_path: Path
) -> None:
    folder = fill(tmp_path / "set", *names)
    for part, expected in taken.items():
        found = sources.list_files("set", tmp_path, part)
        assert [str(path.relative_to(folder)) for path in found] == expected
        left = sources.find_left_out("set", tmp_path, part)
        assert sorted(map(str, [*found, *left])) == sorted(str(folder / name) for name in names)


def test_a_folder_without_the_split_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "set", "train-0.jsonl", "test-0.jsonl")
    with pytest.raises(ValueError, match=r"none for validation: name one of its files \(test-0.jsonl, train-0.jsonl\)"):
        sources.list_files("set", tmp_path, "validation")


def test_every_verb_and_the_screen_say_what_a_folder_left_out(
    home: Home, profile_over: ProfileOver, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "set", "train-0.jsonl", "test-0.jsonl", "dev-0.jsonl")
    left = [str(folder / "dev-0.jsonl"), str(folder / "test-0.jsonl")]
    for verb, options in ((inspect, {}), (validate, {}), (clean, {"overrides": [], "out": str(tmp_path / "out")})):
        told = run(verb, home, folder, **options)
        assert (told["rows"], told["left_out"]) == (1, left)
    profile = profile_over([chat("q", "a")], None, "data.validation=[{source: set}]", train=[{"source": "set"}])
    prepared = prepare(profile, home, lambda *_: None)
    assert [(each["part"], each["files"]) for each in prepared["left_out"]] == [
        ("train", ["dev-0.jsonl", "test-0.jsonl"]),
        ("validation", ["test-0.jsonl", "train-0.jsonl"]),
    ]
    assert [each.code for each in list_warnings(prepared)].count("data.files.left_out") == 2
    summary = Browser(profile, home, lambda *_: None).summary()
    assert [each["left_out"] for each in summary["sources"]] == [2, 2]
    assert "2 files of other splits not read" in facts(summary, {}).plain


# ── columns that are not used ──────────────────────────────────────────────────────────────────────────────────────


def test_unused_columns_are_named_and_counted_everywhere(home: Home, profile_over: ProfileOver, tmp_path: Path) -> None:
    rows = [{**chat(f"q{number}", "a"), "id": number, "score": number or None, "topic": "t"} for number in range(4)]
    path = write(tmp_path / "rows.jsonl", *rows, {"messages": [], "odd": 1})
    unused = {"id": 4, "topic": 4, "score": 3}
    assert run(inspect, home, path)["unused_columns"] == run(validate, home, path)["unused_columns"] == unused
    profile = profile_over(rows, split={"validation": 0.25, "stratify_by": "topic"})
    prepared = prepare(profile, home, lambda *_: None)
    assert prepared["stages"][0]["unused_columns"] == {"id": 4, "score": 3}, "the topic chooses what is held out"
    (remark,) = (each for each in list_warnings(prepared) if each.code == "data.columns.unused")
    assert remark.message == "columns of train that are not used: id (4 rows), score (3 rows)"
    summary = Browser(profile, home, lambda *_: None).summary()
    assert summary["sources"][0]["unused_columns"] == unused
    assert "columns not used: id (4), topic (4), score (3)" in facts(summary, {}).plain


def test_a_limit_of_rows_limits_the_count_of_columns(home: Home, profile_over: ProfileOver) -> None:
    rows = [{**chat(f"row {number}", "a"), "id": number} for number in range(20)]
    profile = profile_over(rows, train=[{"source": "rows.jsonl", "max_rows": 7}])
    assert prepare(profile, home, lambda *_: None)["stages"][0]["unused_columns"] == {"id": 7}


def test_columns_in_a_prompt_are_used(home: Home, profile_over: ProfileOver) -> None:
    rows = [{"content": f"c{number}", "summary": "s", "title": "t", "author": "x"} for number in range(3)]
    profile = profile_over(rows, train=[{"source": "rows.jsonl", "prompt": "{title}: {content}"}])
    assert prepare(profile, home, lambda *_: None)["stages"][0]["unused_columns"] == {"author": 3}


def test_an_empty_training_set_says_why_its_rows_are_bad(home: Home, profile_over: ProfileOver) -> None:
    from engine.protocol.messages import ProblemError

    profile = profile_over([{"instruction": "q", "output": 3}] * 2, max_rejected=1.0)
    with pytest.raises(ProblemError) as caught:
        prepare(profile, home, lambda *_: None)
    assert "all 2 rows are bad: rows.jsonl:1: output is a number" in str(caught.value.problem.cause)


# ── results ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["rows.jsonl", "rejects.jsonl", "report.json"])
def test_files_of_others_are_not_replaced(name: str, bare_home: Home, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.jsonl", *ROWS), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    for verb, options in ((clean, {"overrides": []}), (validate, {})):
        with pytest.raises(ValueError, match=f"{name} exists and was not written by this command.* --force"):
            run(verb, bare_home, path, out=str(out), **options)
    assert (out / name).read_text() == "mine" and len(list(out.iterdir())) == 1
    assert run(clean, bare_home, path, out=str(out), overrides=[], force=True)["kept"] == 3
    assert (out / name).read_text() != "mine"


def test_results_are_replaced_by_further_results_and_nothing_else(bare_home: Home, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.jsonl", *ROWS), tmp_path / "out"
    halves: dict[str, Any] = {"validation": 0.4, "test": 0.0, "stratify_by": None, "seed": 1}
    for _ in range(2):
        run(clean, bare_home, path, out=str(out), overrides=[])
        run(split, bare_home, path, out=str(out), **halves)
    report = json.loads((out / "report.json").read_text())
    assert report["files"] == ["rejects.jsonl", "rows.jsonl", "test.jsonl", "train.jsonl", "validation.jsonl"]
    other = tmp_path / "other"
    run(clean, bare_home, path, out=str(other), overrides=[])
    (other / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"train.jsonl exists and was not written"):
        run(split, bare_home, path, out=str(other), **halves)


def test_a_converted_file_is_replaced_only_by_whoever_wrote_it(bare_home: Home, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.jsonl", *ROWS), tmp_path / "out.jsonl"
    for _ in range(2):
        run(convert, bare_home, path, to="messages", out=str(out))
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"out\.jsonl exists and was not written by this command"):
        run(convert, bare_home, path, to="messages", out=str(out))
    assert out.read_text() == "mine"
    assert run(convert, bare_home, path, to="messages", out=str(out), force=True)["converted"] == 3


# ── cleaning ───────────────────────────────────────────────────────────────────────────────────────────────────────

CODE = "    return 1\n"
KEPT_AS_THEY_ARE: list[dict[str, Any]] = [
    {"prompt": "Complete:\ndef one():", "completion": CODE.rstrip()},
    {"instruction": "Complete:", "output": "\tif x:\n\t\tpass"},
    {"text": "  indented\n"[:-1]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "it\n\n"}]},
                  {"role": "assistant", "content": "  it"}]},
    {"messages": [{"role": "user", "content": "    a = 1\n    b = 2"}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "user", "content": "q"},
                  {"role": "assistant", "content": None, "tool_calls": [
                      {"function": {"name": "edit", "arguments": {"old": "  x\r\n", "new": "\n\n\n\n\n y\n"}}}]},
                  {"role": "tool", "content": "    x = 1"},
                  {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "q"},
                       {"from": "function_call", "value": ' {"name": "f", "arguments": {"x": " \\n\\n\\n\\n\\n"}}'},
                       {"from": "observation", "value": "  r"}, {"from": "gpt", "value": "  a"}]},
    {"prompt": "q", "chosen": "  a", "rejected": [{"role": "assistant", "content": "\tb"}]},
    {"messages": [{"role": "user", "content": "q"},
                  {"role": "assistant", "content": "```python\nx = 1\n\n\n\n\n\ny = 2\n```\n\nDone."}]},
]  # fmt: skip


@pytest.mark.parametrize("row", KEPT_AS_THEY_ARE)
def test_cleaning_leaves_code_and_calls_alone(row: dict[str, Any], bare_home: Home, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    assert run(clean, bare_home, path, out=str(tmp_path / "out"), overrides=[])["changed"] == 0
    assert (tmp_path / "out/rows.jsonl").read_bytes() == path.read_bytes()


def test_surplus_blanks_still_go(bare_home: Home, tmp_path: Path) -> None:
    rows = [
        {"instruction": "  q \n", "output": "a\n\n\n\n\n\nb  \n\n"},
        {"messages": [{"role": "user", "content": "\n\n  q\n    r  "}, {"role": "assistant", "content": "a "}]},
    ]
    for row, expected in zip(rows, ({"instruction": "q", "output": "a\n\n\nb"}, None), strict=True):
        run(clean, bare_home, write(tmp_path / "rows.jsonl", row), out=str(tmp_path / "out"), overrides=[])
        found = json.loads((tmp_path / "out/rows.jsonl").read_text())
        assert found == (expected or chat("  q\n    r", "a"))
