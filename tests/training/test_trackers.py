"""Trackers through accelerate's classes: what they get, once each, and that none of them can stop or delay a run."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.options.tables import TRACKERS
from engine.options.training import LoggingOptions
from engine.protocol.home import Home, RunDirectory
from engine.protocol.journal import Evaluation, Metrics, Warn, Writer
from engine.protocol.messages import ProblemError
from engine.training import trackers
from engine.training.reporter import Reporter
from tests.training.here import Here, at

Rows = list[tuple[int, str, float]]


class FakeTrackio(ModuleType):
    """Trackio's functions, as accelerate calls them; `fault` runs in `log`."""

    def __init__(self, fault: Any = lambda: None) -> None:
        super().__init__("trackio")
        self.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
        self.logged: Rows = []
        self.started: list[dict[str, Any]] = []
        self.fault = fault
        self.settings: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda values, **_: self.settings.update(values))

    def init(self, **arguments: Any) -> Any:
        self.started.append(arguments)
        return SimpleNamespace(log=self._log, finish=lambda: None)

    def _log(self, values: dict[str, float], step: int) -> None:
        self.fault()
        self.logged += [(step, name, value) for name, value in values.items()]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = Home(tmp_path).run("run-1")
    run.path.mkdir(parents=True)
    return run


def open_tracker(name: str, run: RunDirectory, warnings: list[dict[str, Any]]) -> trackers.Tracker:
    options = LoggingOptions(trackers=[name], offline=True, project="tests")
    launch = {"environment": {"SERVICE_TOKEN": "hunter2", "OMP_NUM_THREADS": "1"}}
    settings = {
        "launch": launch,
        "training": {"learning_rate": 0.1, "none": None},
        "data": {"train": [{"source": "数据"}]},
    }
    return trackers.Tracker(name, run, options, settings, warn=lambda **warning: warnings.append(warning))


def make_metrics(step: int) -> Metrics:
    return Metrics(time=1e9 + step, attempt=1, step=step, values={"train/loss": 1 / step, "train/none": None})


def test_a_run_tells_a_tracker_each_step_once_and_outlives_one_that_fails(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    broken = ModuleType("swanlab")
    broken.__spec__ = importlib.machinery.ModuleSpec("swanlab", None)
    broken.init = lambda **_: (_ for _ in ()).throw(ConnectionError("no such host"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swanlab", broken)
    settings = (
        "logging.trackers=[trackio, swanlab]",
        "logging.offline=true",
        "training.max_steps=4",
        "checkpoint.every_steps=2",
    )
    run = Here(tmp_path, "run", prepared, *settings)
    run.train(orders=at(3, "stop"))
    assert run.train(from_step=2)[0] == "completed"
    losses = {step: value for step, name, value in fake.logged if name == "train/loss"}
    assert (
        [step for step, name, _ in fake.logged if name == "train/loss"]
        == list(losses)
        == list(run.series("train/loss"))
    )
    assert losses == pytest.approx(run.series("train/loss"))
    evaluations = [entry.step for entry in run.entries(Evaluation)]
    assert {step for step, name, _ in fake.logged if name == "eval/loss"} == set(evaluations)
    assert fake.settings["training.micro_batch"] >= 1
    assert [start["name"] for start in fake.started] == ["run", "run"]
    warnings = [entry for entry in run.entries(Warn) if entry.code == "logging.tracker_failed"]
    assert len(warnings) == 2 and all(
        "swanlab" in entry.message and "no such host" in entry.message for entry in warnings
    )


def test_a_tracker_that_fails_or_hangs_is_given_up(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("quota\nmore")

    fake = FakeTrackio(fail)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    warnings: list[dict[str, Any]] = []
    tracker = open_tracker("trackio", run, warnings)
    for step in range(1, 20):
        tracker.write(make_metrics(step))
    tracker.close()
    assert "hunter2" not in fake.settings.values() and "launch.environment.OMP_NUM_THREADS" in fake.settings
    first, last = (warning["message"] for warning in warnings)
    assert "step 1: RuntimeError: quota" in first and "nothing more" in last

    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    released = threading.Event()
    fake.fault = released.wait
    warnings.clear()
    tracker = open_tracker("trackio", run, warnings)
    tracker.write(make_metrics(1))
    tracker.write(make_metrics(2))
    tracker.close()
    released.set()
    (warning,) = warnings
    assert "has not taken" in warning["message"] and warning["code"] == "logging.tracker_failed"


def test_trackers_that_hang_are_waited_for_together(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("accelerate.tracking")  # the first import takes longer than their patience here
    released = threading.Event()
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio(released.wait))
    monkeypatch.setattr(trackers, "PATIENCE", 0.5)
    monkeypatch.setattr(trackers, "WAITING", 3)
    link = SimpleNamespace(announce_journal=lambda size: None, report_progress=lambda **_: None)
    reporter = Reporter(run, 1, link, 0)  # type: ignore[arg-type]
    warnings: list[dict[str, Any]] = []
    reporter.loggers += [open_tracker("trackio", run, warnings) for _ in range(4)]
    for step in range(1, 9):
        reporter.write(make_metrics(step))
    began = time.monotonic()
    reporter.close_loggers()
    released.set()
    assert time.monotonic() - began < 4 * 0.5, "a full queue and four trackers take no longer than one"
    told = " ".join(warning["message"] for warning in warnings)
    assert told.count("has not taken the last") == 4 and told.count("were left out") == 4


def test_ids_are_of_a_place_and_none_is_lost(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio())
    monkeypatch.setattr(trackers, "_read_ids", lambda run, read=trackers._read_ids: (read(run), time.sleep(0.05))[0])
    rows = {name: trackers.Row("trackio", trackers._trackio, lambda _, place: place.run) for name in ("a", "b")}
    monkeypatch.setattr(trackers, "ROWS", rows)
    options = LoggingOptions(offline=False)
    opened = [trackers.Tracker(name, run, options, {}, warn=lambda **_: None) for name in rows]
    for tracker in opened:
        tracker.close()
    assert trackers._read_ids(run) == {"a": run.id, "b": run.id}
    assert trackers._name_id("a", False) == "a" != trackers._name_id("a", True), "toggling logging.offline begins anew"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@example.org")
    assert trackers._name_id("mlflow", True) == "mlflow offline" and "hunter2" not in trackers._name_id("mlflow", False)
    told = trackers._describe(ValueError("no answer from https://me:hunter2@example.org/api"))
    assert "hunter2" not in told and "example.org/api" in told


def test_clearml_does_not_seed_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[Any] = [1337]
    clearml: Any = ModuleType("clearml")
    clearml.Task = SimpleNamespace(set_random_seed=seeds.append, set_offline=lambda offline: None)
    monkeypatch.setitem(sys.modules, "clearml", clearml)
    monkeypatch.setenv("CLEARML_CACHE_DIR", "")
    trackers._clearml(trackers.Place("run", "tests", tmp_path, True, None))
    assert seeds[-1] is None


def test_no_logger_ends_a_run(run: RunDirectory) -> None:
    class Bad:
        def write(self, entry: Any) -> None:
            raise RuntimeError("broken")

        rewind = close = write

    link = SimpleNamespace(announce_journal=lambda size: None, report_progress=lambda **_: None)
    reporter = Reporter(run, 1, link, 0)  # type: ignore[arg-type]
    reporter.loggers += [Bad(), Bad()]  # type: ignore[list-item]
    reporter.write(make_metrics(1))
    assert not reporter.loggers
    codes = [json.loads(line).get("code") for line in run.events.read_text().splitlines()]
    assert codes == [None, "logging.failed", "logging.failed"]


def test_every_tracker_has_a_row_and_an_absent_one_names_its_package() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(trackers.ROWS) == set(TRACKERS)
    for name, (module, package) in TRACKERS.items():
        assert trackers.ROWS[name].kind in LOGGER_TYPE_TO_CLASS
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            with pytest.raises(ProblemError, match=name) as caught:
                trackers.check_installed(LoggingOptions(trackers=[name]))
            assert caught.value.problem.hint.startswith(f"pip install {package},")
    with pytest.raises(ValueError, match="choose from"):
        LoggingOptions(trackers=["mlfow"])


def read_mlflow(folder: Path) -> Rows:
    files = [path for path in folder.glob("*/*/metrics/**/*") if path.is_file()]
    rows = [(path, line.split()) for path in files for line in path.read_text().splitlines()]
    return [(int(line[2]), str(path).split("/metrics/")[1], float(line[1])) for path, line in rows]


def read_trackio(folder: Path) -> Rows:
    with sqlite3.connect(folder / "tests.db") as database:
        found = database.execute("select step, metrics from metrics").fetchall()
    return [(step, name, value) for step, values in found for name, value in json.loads(values).items()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("mlflow", read_mlflow), ("trackio", read_trackio)])
def test_a_real_tracker_keeps_each_step_once(name: str, read: Any, run: RunDirectory) -> None:
    pytest.importorskip(TRACKERS[name][0])
    if name == "mlflow" and importlib.util.find_spec("sqlalchemy"):
        pytest.skip("the records are in a database")
    journal, warnings = Writer(run.events), []
    for steps in (range(1, 6), range(4, 9)):
        tracker = open_tracker(name, run, warnings)
        for step in steps:
            journal.write(make_metrics(step))
            tracker.write(make_metrics(step))
        tracker.close()
    assert not warnings
    rows = [row for row in read(tracker._place.folder) if row[1] == "train/loss"]
    assert sorted(rows) == [(step, "train/loss", pytest.approx(1 / step)) for step in range(1, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swanlab", "comet", "aim", "clearml"])
def test_a_real_tracker_keeps_its_records_in_the_home(name: str, run: RunDirectory) -> None:
    pytest.importorskip(TRACKERS[name][0])
    warnings: list[dict[str, Any]] = []
    tracker = open_tracker(name, run, warnings)
    tracker.write(make_metrics(1))
    tracker.close()
    assert not warnings and any(path.is_file() for path in tracker._place.folder.rglob("*"))
