"""How runs differ: from run directories as they are on disk, headless and in the app."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cockpit.connection.run_sides import read_side
from cockpit.screens.compare import CompareScreen, _section
from cockpit.state.run_comparison import (
    ABSENT,
    Section,
    Side,
    compare_sides,
    describe_first_batch,
    differing,
    energy_requests,
    first_batch,
    flatten,
    measure_energy,
    write_device_time,
)
from cockpit.verbs.compare import compare
from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.messages import Device, Host, Telemetry
from engine.supervisor.registry import Registry
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, run_app, screen_text, until


def make_run(home: Home, name: str, rate: float, digest: str, batches: dict[int, str]) -> None:
    run = home.run(name)
    run.path.mkdir(parents=True)
    job = {"kind": "train", "name": "p", "source": "", "directory": "", "output": "", "host": "", "created": 5.0}
    (run.path / "job.json").write_text(json.dumps(job))
    run.profile.write_text(f"training: {{learning_rate: {rate}}}\ndata:\n  train:\n  - source: a.jsonl\n")
    files = [{"part": "train", "name": "a.jsonl", "sha256": digest}]
    run.prepared.write_text(json.dumps({"files": files}))
    for step, each in batches.items():
        (run.checkpoint(step) / "trainer").mkdir(parents=True)
        (run.checkpoint(step) / "trainer" / "fingerprint.json").write_text(json.dumps({"next batch": each}))
    lifecycle = [
        journal.State(time=100.0, attempt=1, state="running"),
        journal.Launched(time=100.0, attempt=1, pid=1, start_time=1.0, stage="train", devices=[1]),
        journal.State(time=160.0, attempt=1, state="paused"),
        journal.State(time=200.0, attempt=1, state="running"),
        journal.State(time=230.0, attempt=1, state="completed"),
    ]
    events = [journal.Metrics(time=150.0, attempt=1, step=20, values={"train/loss": rate * 100})]
    run.lifecycle.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in lifecycle))
    run.events.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in events))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    make_run(home, "one-1", 1e-4, "aa" * 32, {10: "x", 20: "y"})
    make_run(home, "two-2", 3e-4, "bb" * 32, {10: "x", 20: "z", 30: "w"})
    return home


def test_differences_are_exactly_the_keys_whose_values_differ() -> None:
    draw = random.Random(2)
    for _ in range(300):
        tables = [{f"k{at}": draw.choice([1, 2.5, None, [1], "x"]) for at in range(8) if draw.random() < 0.8}
                  for _ in range(draw.choice([2, 3, 5]))]  # fmt: skip
        found = {row[0]: row[1:] for row in differing(tables)}
        for name in {name for table in tables for name in table}:
            assert (name in found) == any(table.get(name, ...) != tables[0].get(name, ...) for table in tables)
            assert name not in found or [cell == ABSENT for cell in found[name]] == [name not in t for t in tables]
    nested = {"a": {"b": [{"c": 1}, {"c": [2, 3]}], "d": {}}, "e": None}
    assert flatten(nested) == {"a.b[0].c": 1, "a.b[1].c": [2, 3], "a.d": {}, "e": None}


def test_the_first_other_batch_lies_between_checkpoints_of_both() -> None:
    one = Side("one", batches={10: "a", 20: "b", 40: "d"})
    assert first_batch(one, Side("x", batches={10: "a", 20: "c", 40: "e"})) == (10, 20)
    assert first_batch(one, Side("x", batches={20: "c"})) == (None, 20)
    assert first_batch(one, Side("x", batches={10: "a", 30: "c", 40: "d"})) == (40, None)
    assert describe_first_batch(one, Side("x")).startswith("not known")


def test_energy_is_the_power_over_the_time_that_the_run_was_running() -> None:
    def sample(time: float, *powers: float | None) -> Telemetry:
        cards = [Device(index=index, name="", power=power) for index, power in enumerate(powers)]
        return Telemetry(time=time, host=Host(), devices=cards)

    steady = [sample(at, 500.0, 360.0) for at in range(0, 3_601, 60)]
    assert measure_energy(steady, [1], [(0, 3_600)]) == pytest.approx(360.0)
    assert measure_energy(steady, [0, 1], [(0, 900), (1_800, 2_700)]) == pytest.approx(430.0)
    ramp = [sample(at, at) for at in (0, 10, 20)]
    assert measure_energy(ramp, [0], [(0, 20)]) == pytest.approx(20 * 10 / 3600)
    assert measure_energy([sample(0, 100.0), sample(7_200, 100.0)], [0], [(0, 7_200)]) is None  # nobody was looking
    assert measure_energy([sample(0, None), sample(60, None)], [0], [(0, 60)]) is None
    assert measure_energy(steady, [7], [(0, 3_600)]) is None


def test_the_energy_of_long_runs_is_whole_whatever_the_registry_keeps(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    end, hour = 3 * 86_400, 3_600
    registry._db.execute("BEGIN")
    for at in [*range(0, end - hour, 60), *range(end - hour, end + 1, 5)]:
        cards = [Device(index=index, name="", power=power) for index, power in enumerate((100.0, 50.0))]
        registry.add_telemetry(Telemetry(time=float(at), host=Host(), devices=cards))
    registry._db.execute("COMMIT")
    spans = [(600.0, 10_000.0), (20_000.0, 100_000.0), (130_000.0, float(end))]
    side = Side("r", spans=spans, span_devices=[(0, 1), (0, 1), (1,)])
    parts = [
        measure_energy(registry.read_telemetry(query.first or 0.0, query.last, query.points), devices, inside)
        for query, devices, inside in energy_requests(side)
    ]
    seconds = [stop - start for start, stop in spans]
    wanted = (150 * (seconds[0] + seconds[1]) + 50 * seconds[2]) / 3600
    assert sum(part or 0.0 for part in parts) == pytest.approx(wanted, rel=1e-6)
    assert all(query.points <= 1_500 for query, _, _ in energy_requests(side))
    assert list(energy_requests(Side("cpu", spans=spans, span_devices=[()] * 3))) == []


def test_a_lost_run_was_running_until_its_worker_last_wrote(home: Home) -> None:
    run = home.run("one-1")
    lifecycle = [
        journal.Launched(time=90.0, attempt=1, pid=1, start_time=1.0, stage="train", devices=[0, 1]),
        journal.State(time=100.0, attempt=1, state="running"),
        journal.State(time=9_000.0, attempt=1, state="lost"),
        journal.State(time=9_010.0, attempt=2, state="queued"),
        journal.Launched(time=9_020.0, attempt=2, pid=1, start_time=1.0, stage="train", devices=[3]),
        journal.State(time=9_030.0, attempt=2, state="running"),
        journal.State(time=9_040.0, attempt=2, state="completed"),
    ]
    run.lifecycle.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in lifecycle))
    side = read_side(run, 10_000.0)
    assert side.spans == [(100.0, 150.0), (9_030.0, 9_040.0)] and side.span_devices == [(0, 1), (3,)]
    assert (side.seconds, side.devices, write_device_time(side)) == (60.0, (3,), "1:50")
    assert len(list(energy_requests(side))) == 2
    (run.path / "job.json").write_text(json.dumps({"host": "another"}))  # whose power is not known here
    assert list(energy_requests(read_side(run, 10_000.0))) == []


def test_settings_of_any_length_fit_and_floats_that_differ_look_different() -> None:
    tables = [{"a": 0.100001, "b": float("inf")}, {"a": 0.100002, "b": float("nan")}]
    assert [row[1] != row[2] for row in differing(tables)] == [True, True]
    long = "{% for turn in \t\x1b[2J 世界 %}" * 20_000
    shown = _section(Section("settings", [("template", long, long[:-1])]), 2, 60)
    assert max(line.cell_length for line in shown.split("\n")) <= 60 and "\t" not in shown.plain


def test_the_verb_says_what_differs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(home=str(home.root), runs=["one", "two-2"], no_evaluations=True, json=False)
    assert compare(options) == 0
    said = capsys.readouterr().out
    for words in ("training.learning_rate", "train a.jsonl", "aaaaaaaaaaaa", "between the batches after step 10",
                  "train/loss", "1:30"):  # fmt: skip
        assert words in said, words
    assert "data.train" not in said.split("data that differ")[0].split("\n", 1)[1]  # the same in both
    options.json = True
    assert compare(options) == 0
    titles = [each["title"] for each in json.loads(capsys.readouterr().out)["sections"]]
    assert titles[0] == "settings that differ" and titles[-1] == "cost"
    with pytest.raises(ValueError, match="two different runs"):
        compare(argparse.Namespace(home=str(home.root), runs=["one", "one-1"], no_evaluations=True, json=False))


def test_damaged_files_leave_their_part_out(home: Home) -> None:
    run = home.run("one-1")
    for junk in (b"", b"\xff\xfe", b"[1, 2]", b"{" * 200):
        for path in (run.profile, run.prepared, run.checkpoint(10) / "trainer" / "fingerprint.json"):
            path.write_bytes(junk)
        side = read_side(run, 300.0)
        assert side.files == [] and side.batches == {20: "y"} and "profile" in side.noted
        assert (side.seconds, side.devices, side.state) == (90.0, (1,), "completed")
        assert "profile cannot be read" in compare_sides([side, side])[0].note


class Comparing(FakeEngine):
    """An evaluate service whose comparison is known."""

    async def request(self, operation: str, message: Any = None, timeout: float = 30.0) -> Any:
        from types import SimpleNamespace

        if operation == "service_open":
            return SimpleNamespace(id="s1", state="running", kind="evaluate")
        if operation == "service_close":
            return None
        if operation == "service_ask":
            each = {"first": 0.5, "second": 0.7, "difference": 0.2, "low": 0.1, "high": 0.3, "beyond_noise": True}
            found = {"differences": {"f1": each | {"better": 1}}, "compared_rows": 64, "data": "x", "step": 20}
            return SimpleNamespace(result={"compared": {message.arguments["runs"][1]: found | {"first_step": 20}}})
        return await super().request(operation, message, timeout)


@pytest.mark.parametrize("size", [HIGH, LOW, (60, 18)])
async def test_marked_runs_are_compared_in_the_app(home: Home, size: tuple[int, int]) -> None:
    runs = [demo_run(id=name, name="p", state="completed", created=float(at), directory=str(home.run(name).path))
            for at, name in enumerate(("two-2", "one-1"))]  # fmt: skip
    async with run_app(Comparing(*runs), size, home, first="runs") as pilot:
        await pilot.press("o", "j", "o", "C")
        await until(pilot, lambda: isinstance(pilot.app.screen, CompareScreen))
        screen = pilot.app.screen
        assert isinstance(screen, CompareScreen)
        wanted = ("learning_rate", "aaaaaaaaaaaa", "after step 10", "0.1 … 0.3", "▲ better", "1:30")
        await until(pilot, lambda: not [words for words in wanted if words not in screen._text(size[0] - 4).plain])
        await until(pilot, lambda: "settings that differ" in screen_text(pilot))
        assert max(line.cell_length for line in screen._text(size[0] - 4).split("\n")) <= size[0] - 4
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, CompareScreen))
