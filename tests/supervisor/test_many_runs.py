"""A home with many runs: what starting an engine costs there, in counts rather than seconds."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.messages import Run
from engine.supervisor import runs as runs_module
from engine.supervisor.adoption import Backlog, adopt_runs
from engine.supervisor.devices import Devices
from engine.supervisor.launching import Launcher
from engine.supervisor.queue import Queue
from engine.supervisor.registry import Registry
from engine.supervisor.run_monitor import RunMonitor
from engine.supervisor.runs import Runs
from engine.supervisor.unstored import Unstored
from tests.scripted.homes import make_finished_runs

COUNT = 300


class _Start:
    """What a supervisor does at its start, without its sockets."""

    def __init__(self, home: Home) -> None:
        self.registry = Registry(home.registry)
        self.runs = Runs(home)
        self.published: list[Any] = []
        queue = Queue(self.runs, Launcher(home, "tests.scripted", str, Devices(lambda: [])))
        nothing: Any = lambda *_: None  # noqa: E731
        monitor = RunMonitor(self.runs, queue, self.published.append, nothing, nothing)
        self.backlog = Backlog(self.runs, self._index)
        adopt_runs(self.runs, queue, monitor, self.registry.load(), self.backlog)
        assert queue.order == []

    def _index(self, record: Any) -> None:
        points, entries = record.take_unindexed()
        self.registry.store(record.run, record.offset, points, entries)

    def finish(self) -> None:
        while self.backlog:
            self.backlog.advance()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many profiles were parsed, and how many lines of journals decoded."""
    counts = {"profiles": 0, "lines": 0}
    parsed: list[Any] = []
    parse, decode = runs_module.parse, journal.decode

    def counting_parse(*arguments: Any, **options: Any) -> Any:
        counts["profiles"] += 1
        if not parsed:  # all profiles here are the same
            parsed.append(parse(*arguments, **options))
        return parsed[0]

    def counting_decode(line: bytes) -> Any:
        counts["lines"] += 1
        return decode(line)

    monkeypatch.setattr(runs_module, "parse", counting_parse)
    monkeypatch.setattr(journal, "decode", counting_decode)
    return counts


def test_starting_in_a_home_with_many_runs_reads_little(tmp_path: Path, counted: dict[str, int]) -> None:
    home = Home(tmp_path).create()
    ids = make_finished_runs(home, COUNT, steps=40)
    first = _Start(home)
    # Before anything is indexed: lifecycles alone, five lines each.
    assert counted == {"profiles": 0, "lines": 5 * COUNT}
    assert {run.state for run in _list(first)} == {"completed"}
    first.finish()
    assert counted["profiles"] == COUNT and counted["lines"] == 5 * COUNT + 43 * COUNT
    expected = {run.id: run for run in _list(first)}
    assert all(run.step == 40 and run.method == "sft" and run.metrics for run in expected.values())
    first.registry.close()

    counted.update(profiles=0, lines=0)
    again = _Start(home)
    assert counted == {"profiles": 0, "lines": 5 * COUNT}, "the index has the rest"
    assert not again.backlog
    assert {run.id: run for run in _list(again)} == expected
    assert sorted(expected) == ids
    assert not any(record.changed for record in again.runs.records.values()), "nothing is indexed anew"
    again.registry.close()


def test_a_journal_that_has_grown_or_shrunk_is_read_again(tmp_path: Path) -> None:
    home = Home(tmp_path).create()
    grown, shrunk = make_finished_runs(home, 2, steps=40)
    first = _Start(home)
    first.finish()
    first.registry.close()
    with open(home.run(grown).events, "ab") as file:
        file.write(journal.encode(journal.Metrics(attempt=1, step=41, values={"train/loss": 0.5})) + b"\n")
    lines = home.run(shrunk).events.read_bytes().splitlines(keepends=True)
    home.run(shrunk).events.write_bytes(b"".join(lines[:21]))
    again = _Start(home)
    again.finish()
    assert again.runs.records[grown].run.step == 41
    assert again.runs.records[shrunk].run.step == 20
    assert any("events.jsonl has" in text for text in again.runs.records[shrunk].damage)
    again.registry.close()


def test_the_long_journal_of_a_live_run_waits_for_the_registry_instead_of_filling_memory(tmp_path: Path) -> None:
    home = Home(tmp_path).create()
    (name,) = make_finished_runs(home, 1, steps=3)
    directory = home.run(name)
    lines = directory.lifecycle.read_bytes().splitlines(keepends=True)
    directory.lifecycle.write_bytes(b"".join(lines[:-2]))  # it was still training
    with open(directory.events, "ab") as file:
        for step in range(4, 30_004):
            file.write(b'{"kind":"metrics","time":1.0,"attempt":1,"step":%d,"values":{"train/loss":0.5}}\n' % step)
    unstored, most = Unstored(most=2), [0]
    stored: list[Any] = []
    with ThreadPoolExecutor(1) as thread:

        def store(points: list[Any]) -> None:
            time.sleep(0.0 if stored else 1.0)  # the disk is slow at first
            stored.extend(points)
            unstored.remove()

        def index(record: Any) -> None:
            points, _ = record.take_unindexed()
            unstored.add()
            most[0] = max(most[0], unstored._count)
            thread.submit(store, points)

        runs = Runs(home)
        queue = Queue(runs, Launcher(home, "tests.scripted", str, Devices(lambda: [])))
        nothing: Any = lambda *_: None  # noqa: E731
        adopt_runs(runs, queue, RunMonitor(runs, queue, *[nothing] * 3), {}, Backlog(runs, index, unstored.wait))
    assert most[0] <= 2
    stored += runs.records[name].points  # the last part is stored with the run's next change
    assert [step for name, step, _ in stored if name == "train/loss"] == [1, 2, 3, *range(4, 30_004)]


def _list(start: _Start) -> list[Run]:
    return [record.run for record in start.runs.records.values()]
