"""Long steps in pieces: complete, in order, and killed at any moment without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.prep.chunks import Span, SpanResult, cut, work_through, write_together


def shout(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Upper-case the lines, slowly."""
    time.sleep(settings.get("pause", 0))
    with open(span.path, "rb") as file:
        file.seek(span.start)
        content = file.read(span.end - span.start)
    if b"bad" in content:
        raise ValueError("a bad line")
    (folder / "rows").write_bytes(content.upper())
    return {"lines": content.count(b"\n"), "pid": os.getpid(), "first": span.line}


ROOT = Path(__file__).parents[2]
WORK = "tests.prep.test_chunks:shout"


def lines(path: Path, count: int = 4000) -> Path:
    path.write_text("".join(f"line {number} {'x' * (number % 97)}\n" for number in range(1, count + 1)))
    return path


def joined(results: list[SpanResult]) -> bytes:
    return b"".join((done.folder / "rows").read_bytes() for done in results)


@pytest.mark.parametrize("ending", ["", "a last line without an end"])
def test_spans_cover_the_file_and_know_their_lines(tmp_path: Path, ending: str) -> None:
    path = lines(tmp_path / "rows", 60_000)
    with path.open("a") as file:
        file.write(ending)
    content = path.read_bytes()
    spans = list(cut(path, 2**20))
    assert len(spans) > 3
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == len(content)
    for span in spans:
        assert span.line == content.count(b"\n", 0, span.start) + 1
        assert content[span.end - 1 : span.end] == b"\n" or span is spans[-1]


def test_a_line_longer_than_a_span_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"a\n" + b"x" * 5 * 2**20 + b"\nb\n")
    spans = list(cut(path, 2**20))
    assert spans[-1].end == path.stat().st_size
    assert all(path.read_bytes()[span.end - 1 : span.end] == b"\n" for span in spans)
    assert list(cut(Path(os.devnull))) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_are_not_made_twice(tmp_path: Path, processes: int) -> None:
    path = lines(tmp_path / "rows", 60_000)
    spans, told = list(cut(path, 2**20)), []
    first = list(work_through(spans, WORK, {}, tmp_path / "work", processes, lambda *at: told.append(at)))
    assert joined(first) == path.read_bytes().upper()
    assert sum(done.counts["lines"] for done in first) == 60_000
    assert told[-1] == (path.stat().st_size,) * 2 and sorted(told) == told
    assert (os.getpid() in {done.counts["pid"] for done in first}) == (processes == 1)
    again = list(work_through(spans, WORK, {}, tmp_path / "work", 1, lambda *_: None))
    assert [done.counts for done in again] == [done.counts for done in first]


def test_what_work_raises_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("good\nbad\n")
    with pytest.raises(ValueError, match="a bad line"):
        list(work_through(list(cut(path)), WORK, {}, tmp_path / "work", 1, lambda *_: None))


def test_a_draft_that_a_kill_left_is_swept_and_a_live_ones_is_not(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom engine.prep.chunks import write_together\n"
        f"with write_together(Path({str(tmp_path / 'rows.jsonl')!r})) as (file,):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"half"]
    with write_together(tmp_path / "rows.jsonl") as (first,):
        assert len(list(tmp_path.iterdir())) == 1, "the dead one's is gone, this one's is there"
        with write_together(tmp_path / "rejects.jsonl") as (other,):
            other.write(b"other")
        first.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rejects.jsonl", "rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_bytes() == b"whole"


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows", 60_000)
    program = (
        "from pathlib import Path\n"
        "from engine.prep.chunks import *\n"
        f"spans = list(cut(Path({str(path)!r}), 2**18))\n"
        f"list(work_through(spans, {WORK!r}, {{'pause': 0.05}}, Path({str(tmp_path / 'work')!r}), 1, lambda *_: None))"
    )
    killed = 0
    for _ in range(3):
        finished = len(list((tmp_path / "work").glob("[0-9]*")))
        child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
        while child.poll() is None and len(list((tmp_path / "work").glob("[0-9]*"))) == finished:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed
    spans = list(cut(path, 2**18))
    results = list(work_through(spans, WORK, {}, tmp_path / "work", 1, lambda *_: None))
    assert joined(results) == path.read_bytes().upper()
    assert len({done.counts["pid"] for done in results}) > 1, "an earlier process must have finished some"
