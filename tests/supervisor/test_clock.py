"""A clock that is set, by any amount and in any direction, loses neither the engine nor a run."""

from __future__ import annotations

import json

import pytest

from engine.protocol import journal, states, wire
from engine.protocol.client import Client, find_engine
from engine.protocol.messages import Rank
from engine.supervisor.hang_detector import Heartbeats
from tests.scripted.bench import Engine


def rewrite(path, change) -> None:
    """Replace each JSON line of a file by what `change` makes of it."""
    path.write_text("\n".join(json.dumps(change(json.loads(line))) for line in path.read_text().splitlines()) + "\n")


@pytest.mark.parametrize("step", [-86400.0, 5.0, 86400.0])
@pytest.mark.parametrize("older", [False, True])
def test_the_engine_is_found_after_the_clock_was_set(engine: Engine, step: float, older: bool) -> None:
    """A recorded start time that is off by `step` is what a step of the clock looks like."""

    def moved(record: dict) -> dict:
        record["start_time"] += step
        return {name: value for name, value in record.items() if not (older and name == "identity")}

    record = wire.read_connection(engine.home)
    assert record is not None
    path = engine.home.connection.with_suffix(".copy")
    path.write_text(json.dumps(moved(json.loads(engine.home.connection.read_bytes()))))
    path.replace(engine.home.connection)
    found = find_engine(engine.home)
    assert found is not None and found.pid == engine.process.pid
    with Client(engine.home) as client:
        assert client.request("hello").pid == engine.process.pid


@pytest.mark.parametrize("older", [False, True])
def test_a_run_is_adopted_after_the_clock_was_set(engine: Engine, older: bool) -> None:
    run = engine.submit(steps=400)
    engine.wait_step(run, 5)
    engine.kill()
    pids = {process.pid for process in engine.processes(run)}

    def moved(entry: dict) -> dict:
        if entry["kind"] == "launched":
            entry["start_time"] -= 3600
            if older:
                del entry["identity"]
        return entry

    rewrite(engine.home.run(run.id).lifecycle, moved)
    engine.restart()
    assert engine.show(run).run.state == states.RUNNING
    assert {process.pid for process in engine.processes(run)} == pids
    entries = [entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle)]
    assert any(isinstance(entry, journal.Adopted) for entry in entries)
    assert engine.wait(run, states.COMPLETED).step == 400


def test_a_clock_that_was_set_hides_no_hang_and_makes_none() -> None:
    heartbeats = Heartbeats(checked=0.0)
    for now in range(0, 100):
        clock = now + (3600 if now > 50 else 0)  # the ranks' clock steps
        heartbeats.add(Rank(rank=0, pid=1, phase="training", time=float(clock)), float(now))
        assert not heartbeats.find_hung_ranks(float(now))
    assert heartbeats.longest["training"] <= 1.0, "the step of the clock is no slow step"
    clock = 0
    for now in range(100, 400):
        heartbeats.add(Rank(rank=0, pid=1, phase="training", time=float(clock)), float(now))
        hung = heartbeats.find_hung_ranks(float(now))
    assert set(hung) == {0}
