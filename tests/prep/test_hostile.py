"""Files that are damaged, wrong or meant to do harm: counted rejects, or one clear error, within bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from engine.prep import readers, sources
from engine.prep.files import KINDS, PACKINGS, packed

ROWS = [{"text": f"row {number} ä", "label": str(number)} for number in range(20)]
_FAST = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all generated cases: a file a case is written over the one before."""
    return tmp_path_factory.mktemp("hostile")


def survived(path: Path) -> list[readers.Record]:
    """The records; whatever the file holds, each is good or says why not, and an error is a ValueError that names the
    file."""
    records: list[readers.Record] = []
    try:
        records.extend(readers.read(path))
    except ValueError as error:
        assert str(error).startswith(path.name) and len(str(error)) < 2000, str(error)[:300]
        return records
    finally:
        for record in records:
            assert (record.value is None) == bool(record.reason)
            assert record.line > 0 and 0 <= record.offset <= record.end
            assert record.value is None or isinstance(record.value, dict)
    return records


# ── generated ──────────────────────────────────────────────────────────────────────────────────────────────────────

HARM = [
    b"\xff",
    b"\xc3",
    b"\0",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\xef\xbb\xbf",
    b"NaN",
]
HARM += [b"1e999", b"\\ud800", b'"\n"', b"{}", b"[[[[", b"null", b"a,b", b"\xf0\x9f\x8e\x89", b'{"text":"x"}', b":"]


def harm(chance: random.Random) -> bytes:
    return chance.choice(HARM) if chance.random() < 0.5 else chance.randbytes(chance.randrange(13))


def harmed(content: bytes, chance: random.Random) -> bytes:
    """The file with some bytes replaced, put in, left out, or cut off; at its ends more often than in between."""
    for _ in range(chance.randint(1, 4)):
        at = chance.choice((0, len(content), *[chance.randint(0, len(content))] * 8))
        content = content[:at] + harm(chance) + content[at + chance.choice((0, 1, 2, 5, 1000)) :]
    return content


def anything(chance: random.Random) -> bytes:
    """Up to eight lines of harm."""
    lines = (b"".join(harm(chance) for _ in range(chance.randrange(13))) for _ in range(chance.randrange(9)))
    return b"\n".join(lines)


def survive(cases: int, path: Path, make: Callable[[random.Random], bytes]) -> list[int]:
    """How many records there were in each of so many files. A file that does harm is left where it is.

    The files are drawn by hand: Hypothesis takes ten times as long to draw one as we to read it, and a short file needs
    no shrinking.
    """
    counts = []
    for case in range(cases):
        path.write_bytes(make(random.Random(f"{path.name} {case}")))
        counts.append(len(survived(path)))
    return counts


def table() -> pa.Table:
    return pa.Table.from_pylist([row | {"turns": [{"role": "user", "at": [1.5, None]}]} for row in ROWS])


def sound(kind: str) -> bytes:
    """A small sound file of this kind."""
    if kind == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if kind == ".json":
        return json.dumps(ROWS, indent=1).encode()
    if kind in (".csv", ".tsv"):
        delimiter = "," if kind == ".csv" else "\t"
        return "".join(
            f'"{row["text"]}"{delimiter}{row["label"]}\n' for row in [{"text": "text", "label": "label"}, *ROWS]
        ).encode()
    if kind == ".txt":
        return "".join(row["text"] + "\n" for row in ROWS).encode()
    sink = io.BytesIO()
    if kind == ".parquet":
        parquet.write_table(table(), sink)
    else:
        with pa.ipc.new_stream(sink, table().schema) as writer:
            writer.write_table(table())
    return sink.getvalue()


TEXTUAL = [kind for kind in KINDS if kind not in (".parquet", ".arrow")]
CASES = {**dict.fromkeys(TEXTUAL, 1200), ".parquet": 400, ".arrow": 400}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_harm_to_a_sound_file(kind: str, folder: Path) -> None:
    path, content = folder / f"harmed{kind}", sound(kind)
    path.write_bytes(content)
    assert [record.reason for record in survived(path)] == [""] * len(ROWS)
    assert max(survive(CASES[kind], path, lambda chance: harmed(content, chance))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEXTUAL)
def test_anything_at_all(kind: str, folder: Path) -> None:
    assert max(survive(500, folder / f"anything{kind}", anything)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("ending", PACKINGS)
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_any_harm_to_a_packed_file(kind: str, ending: str, folder: Path) -> None:
    content = (gzip if ending == ".gz" else zstd).compress(sound(kind))
    survive(300, folder / f"packed{kind}{ending}", lambda chance: harmed(content, chance))


BAD = ["[1]", "3", "null", '"text"', "{", "{'a': 1}", '{"a": NaN}', '{"a": "\ud83c"}', '{"a": 1}}']


@pytest.mark.slow
@settings(_FAST, max_examples=500)
@given(
    st.lists(
        st.one_of(
            st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none(), max_size=3).map(
                json.dumps
            ),
            st.sampled_from(["", "{}", *BAD]),
        ),
        max_size=12,
    )
)
def test_good_and_bad_lines_add_up(folder: Path, written: list[str]) -> None:
    path = folder / "lines.jsonl"
    path.write_text("\n".join(written), encoding="utf-8", errors="surrogatepass")
    good = [line for line in written if line[:2] in ('{"', "{}") and line not in BAD]
    records = survived(path)
    assert len(records) == len([line for line in written if line])
    assert [record.value for record in records if record.value is not None] == [json.loads(line) for line in good]
    assert [record.line for record in records] == [number for number, line in enumerate(written, 1) if line]


def test_so_many_cases_are_generated() -> None:
    assert sum(CASES.values()) + 500 * len(TEXTUAL) + 300 * 4 + 500 >= 10_000


# ── by hand ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"ARROW1\0\0", b"instruction,output\nq,a\n", b"PAR1" + b"\xff" * 100 + b"PAR1", b"\xff" * 64],
)
def test_a_columnar_file_that_is_none_is_one_clear_error(kind: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^rows\{kind} cannot be read: it is damaged, or no \{kind} file: "):
        list(readers.read(path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", PACKINGS)
def test_a_packed_file_that_is_cut_off_is_one_clear_error(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}{ending}"
    content = (gzip if ending == ".gz" else zstd).compress(sound(kind))
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=rf"^rows\{kind}\{ending} cannot be read: .*end-of-stream"):
        list(readers.read(path))
    path.write_bytes(b"nothing packed")
    with pytest.raises(ValueError, match=r"cannot be read: "):
        list(readers.read(path))


def test_deep_json_is_a_reject(tmp_path: Path) -> None:
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    for name, content in (("rows.jsonl", f'{deep}\n{{"a": 1}}\n'), ("rows.json", f'[{deep}, {{"a": 1}}]')):
        (tmp_path / name).write_text(content)
        first, second = survived(tmp_path / name)
        assert first.reason.startswith("not JSON") and second.value == {"a": 1}


def test_nul_bytes_are_rejects_where_text_cannot_hold_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\0"}\n\0\0\0\n{"a": "\\u0000"}\n')
    assert [record.value for record in survived(tmp_path / "rows.jsonl")] == [None, None, {"a": "\0"}]


def test_a_wrong_delimiter_rejects_every_row_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("question,answer\nq\ta\nq\ta,b\n")
    records = survived(tmp_path / "rows.tsv")
    assert [record.reason for record in records] == [r"2 fields, but the header has 1 (the delimiter is '\t')"] * 2


def test_another_encoding_is_known_by_its_byte_order_mark(tmp_path: Path) -> None:
    for kind in TEXTUAL:
        path, usual = tmp_path / f"rows{kind}", tmp_path / f"usual{kind}"
        path.write_bytes(sound(kind).decode().encode("utf-16"))
        usual.write_bytes(sound(kind))
        values = [record.value for record in readers.read(path)]
        assert values and values == [record.value for record in readers.read(usual)]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="is not a file"):
        list(readers.read(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="without a file that can be read"):
        sources.list_files(".", tmp_path)


def test_a_file_that_unpacks_beyond_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_SMALL", 2**20)
    path = tmp_path / "rows.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1" + bytes(64 * 2**20)))
    with pytest.raises(ValueError, match=r"rows\.parquet\.gz cannot be read: it unpacks to more than"):
        list(readers.read(path))


# ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────────

GIGABYTE = 2**30
PROGRAM = """
import resource, sys
from pathlib import Path
from engine.prep import readers
import pyarrow.parquet, engine.prep.files.packed
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
before = peak()
counts = [0, 0]
error = ""
try:
    for record in readers.read(Path(sys.argv[1])):
        counts[record.value is None] += 1
except ValueError as fault:
    error = str(fault)
print(peak() - before, *counts, error[:200])
"""


def long_line(path: Path, head: bytes, filling: bytes, tail: bytes, size: int = GIGABYTE) -> None:
    """So much between head and tail: a hole in the file where it may be zeros."""
    with path.open("wb") as file:
        file.write(head)
        if filling == b"\0":
            file.seek(size, os.SEEK_CUR)
        else:
            for _ in range(size // 2**20):
                file.write(filling * (2**20 // len(filling)))
        file.write(tail)


def packed_zeros(path: Path) -> None:
    pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(pack.compress(b'{"text": "'))
        for _ in range(GIGABYTE // 2**20):
            file.write(pack.compress(b"x" * 2**20))
        file.write(pack.compress(b'"}\n{"text": "next"}\n') + pack.flush())


def many_rows(path: Path) -> None:
    """A list of 100 MB."""
    row = json.dumps({"text": "x" * 1000})
    with path.open("w") as file:
        file.write("[" + row)
        for _ in range(100_000):
            file.write(",\n" + row)
        file.write("]")


def large_parquet(path: Path) -> None:
    """A row group of 400 MB that does not pack."""
    chance = random.Random(1)
    text = [chance.randbytes(2000).hex() for _ in range(1000)]
    schema = pa.schema([("text", pa.string())])
    with parquet.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        writer.write_table(pa.table({"text": text * 100}, schema), row_group_size=10**9)


MONSTERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "line.jsonl": (lambda path: long_line(path, b'{"text": "', b"\0", b'"}\n{"text": "next"}\n'), "1 1"),
    "line.txt": (lambda path: long_line(path, b"", b"\0", b"\nnext\n", GIGABYTE // 4), "1 1"),
    "line.csv": (lambda path: long_line(path, b"text\n", b"\0", b"\nnext\n", GIGABYTE // 4), "1 1"),
    "quote.csv": (
        lambda path: long_line(path, b'text\n"', b"line, of text " * 1170 + b"\n\n\n\n", b'"\nnext\n', GIGABYTE // 4),
        "1 1",
    ),
    "row.json": (lambda path: long_line(path, b'[{"text": "', b"\0", b'"}, {"text": "next"}]', GIGABYTE // 4), "1 1"),
    "row.jsonl.gz": (packed_zeros, "1 1"),
    "rows.json": (many_rows, "100001 0"),
    "rows.parquet": (large_parquet, "100000 0"),
}


@pytest.fixture
def monster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The file, gone behind the test: temporary folders are kept."""
    path = tmp_path / request.param
    MONSTERS[request.param][0](path)
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("monster", MONSTERS, indirect=True)
def test_what_is_huge_goes_through_within_bounded_memory(monster: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(monster)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    grown, counts = done.stdout.strip().split(" ", 1)
    assert counts == MONSTERS[monster.name][1]
    assert int(grown) < 160, f"{grown} MB"
