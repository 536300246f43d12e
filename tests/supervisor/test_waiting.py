"""The order of the queue: by priority, then as the user has moved the runs; it outlives the engine."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.protocol import journal, states
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Label, ProblemError, Reorder, Run, Stop, Submit
from engine.supervisor.run_record import Job, replay
from engine.supervisor.waiting import HIGHEST, WaitingRuns
from tests.scripted.bench import Engine

JOB = Job(kind="train", name="", source="", directory="/", output="", host="", created=1.0)


class Model:
    """What is to come out: a plain list of (run, priority), kept in order by sorting."""

    def __init__(self) -> None:
        self.runs: list[list[Any]] = []

    def add(self, name: str, priority: int, *, first: bool = False) -> None:
        before = [each for each in self.runs if each[1] > priority or (each[1] == priority and not first)]
        self.runs.insert(len(before), [name, priority])

    def take(self, name: str) -> list[Any]:
        found = next(each for each in self.runs if each[0] == name)
        self.runs.remove(found)
        return found

    def move(self, name: str, position: int) -> None:
        run = self.take(name)
        at = min(position - 1, len(self.runs))
        if at and self.runs[at - 1][1] < run[1]:
            run[1] = self.runs[at - 1][1]
        if at < len(self.runs) and self.runs[at][1] > run[1]:
            run[1] = self.runs[at][1]
        self.runs.insert(at, run)


def waiting_runs(clock: list[float]) -> tuple[WaitingRuns, dict[str, Any]]:
    records: dict[str, Any] = {}
    return WaitingRuns(SimpleNamespace(records=records), lambda: clock[0]), records  # type: ignore[arg-type]


def make_record(folder: Path, name: str) -> Any:
    directory = RunDirectory(folder / name)
    directory.path.mkdir(exist_ok=True)
    record, _ = replay(directory, JOB, Run(id=name), 0)
    return record


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_moves_is_read_back_from_the_journals(seed: int, tmp_path: Path) -> None:
    chance, clock, model = random.Random(seed), [1_000_000.0], Model()
    waiting, records = waiting_runs(clock)
    for number in range(150):
        clock[0] += chance.choice((-3600.0, 0.0, 1e-7, 1.0))  # it may be set back
        names = [run[0] for run in model.runs]
        match chance.randrange(5) if len(names) > 2 else 0:
            case 0 if len(names) < 12:
                priority, first, name = chance.choice((-1, 0, 0, 0, 5)), chance.random() < 0.2, f"run-{number}"
                records[name] = make_record(tmp_path, name)
                records[name].run.priority = priority
                records[name].move("submitted")
                waiting.add(records[name], first=first)
                model.add(name, priority, first=first)
            case 1 if names:
                waiting.remove(records[name := chance.choice(names)])
                model.take(name)
            case 2 if names:
                name, priority = chance.choice(names), chance.choice((-1, 0, 5))
                waiting.reorder(records[name], Reorder(run=name, priority=priority))
                if dict(model.runs)[name] != priority:
                    model.take(name)
                    model.add(name, priority)
            case _ if names:
                name, position = chance.choice(names), chance.randrange(1, len(names) + 3)
                waiting.reorder(records[name], Reorder(run=name, position=position))
                model.move(name, position)
        assert [[run, records[run].run.priority] for run in waiting.order] == model.runs
        assert [records[run].run.position for run in waiting.order] == list(range(1, len(waiting.order) + 1))
        if number % 10 == 9:  # what an engine finds that starts now
            again, found = waiting_runs(clock)
            for name in sorted(waiting.order):
                found[name] = make_record(tmp_path, name)
                again.adopt(found[name])
            again.sort()
            assert [[run, found[run].run.priority] for run in again.order] == model.runs
    for record in records.values():
        record.close()


@pytest.mark.usefixtures("no_sync")
def test_runs_that_an_older_version_queued_keep_its_order(tmp_path: Path) -> None:
    """It wrote no places into journals: the order was in the registry alone."""
    waiting, records = waiting_runs([5e9])
    runs: Any = waiting.runs
    runs.load_profile = lambda record, keep: SimpleNamespace(launch=SimpleNamespace(priority=0))
    for name, position in (("a", 3), ("b", 1), ("c", 2)):
        records[name] = make_record(tmp_path, name)
        records[name].move("submitted")
        records[name].run.position = position
        waiting.adopt(records[name])
    waiting.sort()
    records["d"] = make_record(tmp_path, "d")
    waiting.add(records["d"])
    assert waiting.order == ["b", "c", "a", "d"]
    waiting.move(records["d"], 1)
    waiting.move(records["b"], 3)
    again, found = waiting_runs([5e9])  # the registry is lost: now the journals have all
    for name in "abcd":
        found[name] = make_record(tmp_path, name)
        again.adopt(found[name])
    again.sort()
    assert again.order == waiting.order == ["d", "c", "b", "a"]


@pytest.mark.usefixtures("no_sync")
def test_the_same_gap_can_be_halved_for_ever(tmp_path: Path) -> None:
    waiting, records = waiting_runs([5e9])
    for name in "abc":
        records[name] = make_record(tmp_path, name)
        waiting.add(records[name])
    for _ in range(100):  # each move goes between the first and the second
        waiting.move(records[waiting.order[2]], 2)
        places = [records[run].place for run in waiting.order]
        assert places == sorted(set(places))


def test_order_and_groups_outlive_a_killed_engine(engine: Engine) -> None:
    busy = engine.submit(steps=100_000)
    engine.wait(busy, states.RUNNING)
    first, second, third = (engine.submit(steps=2) for _ in range(3))
    urgent = engine.submit("launch.priority=7", steps=2)
    assert engine.show(urgent).run.position == 1
    assert engine.client.request("reorder", Reorder(run=third.id, position=2)).priority == 0
    assert engine.client.request("reorder", Reorder(run=first.id, priority=7)).position == 2
    engine.client.request("label", Label(run=second.id, group="paper"))
    with pytest.raises(ProblemError) as refused:
        engine.client.request("reorder", Reorder(run=first.id, priority=HIGHEST + 1))
    assert refused.value.problem.code == "request.invalid"
    expected = [(urgent.id, 7), (first.id, 7), (third.id, 0), (second.id, 0)]
    for wipe in (False, True):  # once without the registry, which is an index alone
        engine.kill()
        if wipe:
            for path in engine.home.engine.glob("registry*"):
                path.unlink()
        engine.restart()
        runs = [engine.show(run).run for run in (first, second, third, urgent)]
        waiting = sorted(runs, key=lambda run: run.position)
        assert [(run.id, run.priority) for run in waiting] == expected
        assert [run.group for run in runs] == ["", "paper", "", ""]
    engine.client.request("stop", Stop(run=busy.id, now=True))
    for run in (first, second, third, urgent):
        engine.wait(run, states.COMPLETED)
    begun = [
        (entry.time, run.id)
        for run in (first, second, third, urgent)
        for entry, _ in journal.read(engine.home.run(run.id).lifecycle)
        if isinstance(entry, journal.Launched) and entry.stage == "prepare"
    ]
    assert [run for _, run in sorted(begun)] == [run for run, _ in expected]
    with pytest.raises(ProblemError) as ended:
        engine.client.request("reorder", Reorder(run=first.id, priority=1))
    assert ended.value.problem.code == "run.not_queued"


def test_a_bad_name_of_a_group_leaves_nothing_behind(engine: Engine) -> None:
    profile = engine.submit(steps=2)
    before = sorted(engine.home.runs.iterdir())
    text = engine.home.run(profile.id).profile.read_text(encoding="utf-8")
    with pytest.raises(ProblemError, match="cannot be a group"):
        engine.client.request("submit", Submit(profile=text, directory="/", group="two words"))
    assert sorted(engine.home.runs.iterdir()) == before
