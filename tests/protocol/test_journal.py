"""Journals: what was acknowledged is there, what was torn is not."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import journal
from engine.protocol.journal import Ledger, Metrics, State, Unknown, Writer, read


def entries(path: Path) -> list[journal.AnyEntry]:
    return [entry for entry, _ in read(path)]


def metrics(step: int) -> Metrics:
    return Metrics(attempt=1, step=step, values={"train/loss": 1.0 / step})


def test_every_line_carries_time_and_attempt(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.write(
        Metrics(time=5.0, attempt=1, step=3, epoch=0.5, values={"train/loss": 0.25, "train/grad_norm": float("nan")})
    )
    line = (tmp_path / "events.jsonl").read_text()
    assert line == (
        '{"kind":"metrics","time":5.0,"attempt":1,"step":3,"epoch":0.5,"values":{"train/loss":0.25,"train/grad_norm":null}}\n'
    )


@given(cut=st.integers(min_value=0, max_value=400))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_more(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    writer = Writer(path)
    sizes = [writer.write(metrics(step)) for step in range(1, 6)]
    writer.close()
    os.truncate(path, min(cut, sizes[-1]))
    whole = [step for step, size in enumerate(sizes, 1) if size <= cut]
    assert [entry.step for entry in entries(path)] == whole
    with contextlib.closing(Writer(path)) as again:
        again.write(metrics(9))
    assert [entry.step for entry in entries(path)] == [*whole, 9]


def test_reading_on_from_an_offset(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "j")
    middle = writer.write(metrics(1))
    writer.write(metrics(2))
    assert [(entry.step, offset) for entry, offset in read(tmp_path / "j", middle)] == [(2, writer.size)]
    assert entries(tmp_path / "absent") == []


def test_a_line_of_another_version_is_kept_and_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"kind":"hologram","time":1}\nnot json at all\n')
    assert [type(entry) for entry in entries(tmp_path / "j")] == [Unknown, Unknown]
    assert entries(tmp_path / "j")[0].line == '{"kind":"hologram","time":1}'


FULL = """
import os, resource, sys
from pathlib import Path
from engine.protocol.journal import Metrics, Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = Writer(Path(sys.argv[1]))
step = 0
try:
    while True:
        writer.write(Metrics(attempt=1, step=step + 1, values={"train/loss": 0.5}))
        step += 1
except OSError as error:
    print(step, error.errno, writer.size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write(Metrics(attempt=1, step=step + 1, values={"train/loss": 0.5}))
"""


def test_a_write_that_the_disk_refuses_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The kernel refuses in the middle of a line (a size limit stands for the full disk); later the same line is
    taken."""
    path = tmp_path / "events.jsonl"
    output = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True).stdout
    acknowledged, number, size = map(int, output.split())
    assert number in (errno.EFBIG, errno.ENOSPC)
    assert 0 < size < 1000 and acknowledged > 5
    assert [entry.step for entry in entries(path)] == list(range(1, acknowledged + 2))


def test_a_state_change_is_synced_and_a_metric_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor)))
    writer = Writer(tmp_path / "j")
    writer.write(metrics(1))
    assert synced == []
    writer.write(State(attempt=1, state="running"))
    writer.write(Ledger(attempt=1, step=1, name="pause"))
    assert len(synced) == 2
