"""The index: superseding attempts, summaries that agree with the points, telemetry that thins."""

from __future__ import annotations

import itertools
import random
import sqlite3
from pathlib import Path

import pytest

from engine.protocol.messages import Host, Run, Telemetry
from engine.supervisor.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.db")


def test_a_later_attempts_value_supersedes_in_points_and_summaries(registry: Registry) -> None:
    run = Run(id="r")
    registry.store(run, 1, [("loss", step, 10.0) for step in range(1, 10_001)])
    registry.store(run, 2, [("loss", step, 5.0) for step in range(5_001, 7_001)])
    for points in (3, 40, 20_000):
        series = registry.read_series("r", "loss", points, 5_001, 7_000)
        if points == 20_000:
            assert set(series.last) == {5.0} and len(series.last) == 2_000
    whole = registry.read_series("r", "loss", 10, None, None)
    assert whole.total == 10_000
    assert (min(whole.low), max(whole.high)) == (5.0, 10.0)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 5_000, 70_000])
def test_reduced_series_agree_with_the_points(registry: Registry, count: int) -> None:
    random.seed(count)
    values = [(step, random.random()) for step in range(1, count + 1)]
    for start in range(0, count, 9_000):
        registry.store(Run(id="r"), start, [("loss", step, value) for step, value in values[start : start + 9_000]])
    series = registry.read_series("r", "loss", 100, None, None)
    assert len(series.low) <= 100
    assert series.total == count
    by_step = dict(values)
    columns = (series.first_step, series.last_step, series.low, series.high, series.last, series.mean, series.count)
    for first, last, low, high, final, mean, size in zip(*columns, strict=True):
        inside = [by_step[step] for step in range(first, last + 1)]
        assert (low, high, final, size) == (min(inside), max(inside), by_step[last], len(inside))
        assert mean == pytest.approx(sum(inside) / len(inside))
    assert series.first_step[0] == 1 and series.last_step[-1] == count


def test_summaries_come_back_with_their_offset_and_forget_takes_all(registry: Registry) -> None:
    registry.store(Run(id="a", step=7), 123, [("loss", 1, 1.0)], [(100, b'{"kind":"warning"}')])
    run, offset = registry.load()["a"]
    assert (run.step, offset, registry.read_entries("a", 5)) == (7, 123, [{"kind": "warning"}])
    registry.forget("a")
    assert registry.load() == {} and registry.read_series("a", "loss", 5, None, None).total == 0


def test_telemetry_is_kept_by_the_second_for_an_hour_and_by_the_minute_after(registry: Registry) -> None:
    now = 100_000.0
    for second in range(0, 7_200, 10):
        registry.add_telemetry(Telemetry(time=now - second, host=Host(name="h")))
    registry.thin_telemetry(now)
    recent = registry.read_telemetry(now - 3_600)
    old = [sample for sample in registry.read_telemetry(0) if sample.time < now - 3_600]
    assert len(recent) == 361
    assert 58 <= len(old) <= 62


def test_the_ledger_is_whole_however_many_entries_came_after(registry: Registry) -> None:
    line = b'{"kind":"ledger","step":3,"name":"training.learning_rate","old":0.1,"new":0.2}'
    registry.store(
        Run(id="a"), 1, [], [(100, line), *((101 + n, b'{"kind":"phase","name":"ledger"}') for n in range(900))]
    )
    assert [(entry["step"], entry["new"]) for entry in registry.read_ledger("a")] == [(3, 0.2)]
    assert registry.read_ledger("b") == []


def test_telemetry_of_a_span_is_thinned_evenly(registry: Registry) -> None:
    for second in range(1_000):
        registry.add_telemetry(Telemetry(time=float(second), host=Host()))
    found = [sample.time for sample in registry.read_telemetry(100.0, 899.0, 100)]
    assert len(found) == 100 and found[0] >= 100 and found[-1] == 899.0
    assert {after - before for before, after in itertools.pairwise(found)} == {8.0}
    assert len(registry.read_telemetry(990.0)) == 10 and registry.read_telemetry(2_000.0, 3_000.0, 5) == []


def test_samples_of_seconds_do_not_crowd_out_those_of_minutes(registry: Registry) -> None:
    for at in [*range(0, 36_000, 60), *range(36_000, 39_600)]:  # ten hours, and the last one
        registry.add_telemetry(Telemetry(time=float(at), host=Host()))
    found = [sample.time for sample in registry.read_telemetry(0.0, None, 660)]
    assert max(after - before for before, after in itertools.pairwise(found)) <= 120 and len(found) <= 661


@pytest.mark.parametrize("change", ["ALTER TABLE buckets DROP COLUMN sum", "DROP TABLE told"])
def test_the_index_of_another_version_is_built_again_and_its_telemetry_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    path = tmp_path / "registry.db"
    old = Registry(path)
    old.store(Run(id="r"), 7, [("loss", 1, 1.0)], [(0, b"{}")])
    old.add_telemetry(Telemetry(time=5.0, host=Host()))
    old.close()
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    new = Registry(path)
    assert new.load() == {} and not list(tmp_path.glob("*damaged*"))
    assert "another version" in (said := capsys.readouterr().out) and "damaged" not in said
    new.store(Run(id="r"), 7, [("loss", 1, 2.0), ("clock/time", 1, 3.0)])
    assert new.read_series("r", "loss", 5, None, None).mean == [2.0]
    assert [sample.time for sample in new.read_telemetry(0.0)] == [5.0]


def test_a_disk_that_was_full_mixes_no_runs_and_has_the_lost_part_read_again(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    registry.store(Run(id="a"), 10, [("loss", 1, 1.0)])
    (pages,) = registry._db.execute("PRAGMA page_count").fetchone()
    registry._db.execute(f"PRAGMA max_page_count={pages}")
    many = [(f"name {at}", step, 0.0) for at in range(20) for step in range(200)]
    for run in ("a", "b"):
        with pytest.raises(sqlite3.OperationalError):
            registry.store(Run(id=run), 20, many)
    registry._db.execute("PRAGMA max_page_count=1000000")
    registry.store(Run(id="c"), 30, [("other", 1, 3.0)])
    registry.store(Run(id="b"), 30, [("loss", 2, 2.0)])
    registry.store(Run(id="a"), 30, [("loss", 3, 4.0)])
    for run, name, last in (("a", "loss", [1.0, 4.0]), ("b", "loss", [2.0]), ("c", "other", [3.0]),
                            ("a", "other", []), ("b", "other", []), ("c", "loss", [])):  # fmt: skip
        assert registry.read_series(run, name, 9, None, None).last == last, (run, name)
    registry.close()
    assert {run: offset for run, (_, offset) in Registry(tmp_path / "registry.db").load().items()} == {
        "a": 10,
        "b": 0,
        "c": 30,
    }
