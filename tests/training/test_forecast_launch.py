"""The forecast as a process makes it: for the command line, and for a run whose rows are prepared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import forecasts
from engine.config.profile import load, parse
from engine.protocol.messages import Device, ProblemError
from engine.training.forecast import hosts
from engine.workers import forecast as worker
from engine.workers import launch_forecast
from tests.training.harness import PROFILE

GB = 10**9


class Journal:
    def __init__(self) -> None:
        self.warned: list[str] = []

    def progress(self, *_: Any) -> None: ...

    def warn(self, message: str, hint: str, *, code: str) -> None:
        self.warned.append(code)


def _forecast(home: Any, profile: Path, capfd: Any, *overrides: str, **how: Any) -> tuple[int, dict[str, Any]]:
    text = load(profile, overrides).to_yaml()
    arguments = {"profile": str(profile), "text": text, "directory": str(profile.parent), "card": None, "cards": None}
    arguments |= how
    status = worker._forecast(home, arguments, True)
    return status, json.loads(capfd.readouterr().out.splitlines()[-1])


@pytest.fixture
def profile(tiny: Path, tmp_path: Path) -> Path:
    file = tmp_path / "own.yaml"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w{n} w{n + 1}"}) + "\n" for n in range(20)))
    file.write_text(PROFILE.format(base=tiny).replace("triples/train.jsonl", str(rows)))
    return file


def test_a_profile_is_forecast_for_cards_that_are_not_here(bare_home, profile, capfd):
    status, found = _forecast(bare_home, profile, capfd, card="24GB", cards=2)
    assert (status, found["cards"], found["strategy"]) == (0, 2, "ddp")
    assert not found["rows_measured"]
    assert found["longest"] == 64
    device = sum(term["bytes"] for term in found["terms"] if term["place"] == "device")
    host = sum(term["bytes"] for term in found["terms"] if term["place"] == "host")
    disk = sum(term["bytes"] for term in found["terms"] if term["place"] == "disk")
    assert (device, host, disk) == (found["device_bytes"], found["host_bytes"], found["disk_bytes"])
    assert not list(bare_home.root.glob(f"forecasts/{'?' * 24}.json"))  # no run is submitted to these cards


@pytest.mark.slow
def test_what_nothing_makes_fit_is_told_without_changes(bare_home, profile, capfd):
    status, found = _forecast(bare_home, profile, capfd, card="100MB")
    assert (status, found["verdict"]) == (1, "too_large")  # the context alone is larger
    assert found["changes"] == []


def test_the_verdict_is_said_and_nothing_else_of_what_is_made_up(bare_home, profile, capfd, monkeypatch):
    text = load(profile, []).to_yaml()
    arguments = {"profile": str(profile), "text": text, "directory": str(profile.parent), "card": None, "cards": None}

    def say(free: int) -> tuple[int, list[str], str]:
        monkeypatch.setattr(forecasts.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        status = worker._forecast(bare_home, arguments, False)
        out, error = capfd.readouterr()
        return status, out.splitlines(), error

    status, lines, error = say(10**12)
    assert (status, lines[1]) == (0, "it fits") and "Saving" not in error and "hardly" not in error
    found = worker.make(load(profile), bare_home, hosts.find(load(profile), None, None), lambda *_: False)[0]
    status, lines, error = say(found["disk_bytes"] - 1)
    assert (status, lines[1]) == (0, "it hardly fits, or does not")
    assert "the run hardly fits, or does not: it writes up to" in error and forecasts.NEAR_HINT in error
    status, lines, error = say(found["checkpoint_bytes"] - 1)
    assert (status, lines[1]) == (1, "it does not fit")
    assert "The checkpoints of this run do not fit on the disk: 1 of" in error


def test_on_a_cpu_everything_is_in_the_hosts_memory(bare_home, profile, capfd):
    status, found = _forecast(bare_home, profile, capfd)
    assert (status, found["kind"], found["device_bytes"]) == (0, "cpu", 0)
    assert {term["place"] for term in found["terms"]} == {"host", "disk"}
    assert found["host_bytes"] > 10**8  # libraries
    kept = parse(profile.read_text(), str(profile), profile.parent)
    assert forecasts.read(bare_home, forecasts.compute_key(kept, forecasts.Place("cpu", "CPU"), 1)) is not None
    assert not found["certain"]  # its rows are made up


def _launch(
    tmp_path: Path, monkeypatch: Any, found: dict[str, Any] | None, *changes: str, cards: int = 2
) -> tuple[Journal, Any]:
    from engine.protocol.home import Home

    home, journal = Home(tmp_path), Journal()
    run = home.run("run")
    run.path.mkdir(parents=True)
    profile = parse(PROFILE.format(base="a/b"), "test", Path("/"), changes)
    run.profile.write_text(profile.to_yaml())
    listed = [Device(index=at, kind="nvidia", name="Fake", memory_total=24 * GB) for at in range(cards)]
    monkeypatch.setattr(launch_forecast, "list_visible", lambda: listed)
    monkeypatch.setattr(launch_forecast, "_ask", lambda *_: found)
    launch_forecast.forecast_run(run, home, profile, journal)  # type: ignore[arg-type]
    return journal, parse(run.profile.read_text(), "test", Path("/"))


def _found(device: int, **further: Any) -> dict[str, Any]:
    sizes = {"device_bytes": device, "host_bytes": 1, "disk_bytes": 1, "seconds": None, "error_percent": 10.0}
    least = {"device_bytes": device, "host_bytes": 1}
    return sizes | {"free_bytes": GB, "chosen_strategy": "zero2", "certain": True, "least": least} | further


def test_a_run_gets_its_strategy_before_it_trains(tmp_path, monkeypatch):
    auto = ("launch.strategy=auto", "launch.processes=2")
    journal, profile = _launch(tmp_path, monkeypatch, _found(8 * GB), *auto)
    assert journal.warned == ["forecast.strategy"]
    assert profile.launch.strategy == "zero2"


def test_a_run_that_hardly_fits_is_warned_and_one_that_cannot_is_refused(tmp_path, monkeypatch):
    journal, _ = _launch(tmp_path / "near", monkeypatch, _found(24 * GB))
    assert journal.warned == ["memory.near"]
    with pytest.raises(ProblemError) as refused:
        _launch(tmp_path / "large", monkeypatch, _found(30 * GB))
    assert refused.value.problem.code == "memory.will_not_fit"
    for unsure in ({"certain": False}, {"least": None}, {"least": {"device_bytes": GB, "host_bytes": 1}}):
        journal, _ = _launch(tmp_path / str(unsure)[:12], monkeypatch, _found(30 * GB, **unsure))
        assert journal.warned == ["memory.near"]


def test_a_run_whose_checkpoints_do_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(forecasts.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * GB))
    sizes = {"checkpoint_bytes": 3 * GB, "disk_bytes": 9 * GB}
    journal, _ = _launch(tmp_path / "near", monkeypatch, _found(8 * GB, **sizes, checkpoints=1))
    assert journal.warned == ["memory.near"]
    with pytest.raises(ProblemError, match="2 of 3") as refused:
        _launch(tmp_path / "large", monkeypatch, _found(8 * GB, **sizes, checkpoints=2))
    assert refused.value.problem.code == "disk.low"


def test_a_forecast_that_fails_stops_no_run(tmp_path, monkeypatch):
    journal, _ = _launch(tmp_path / "damaged", monkeypatch, {"device_bytes": "much"})
    assert journal.warned == []


def test_a_verdict_is_used_although_the_search_for_changes_is_late(tmp_path, monkeypatch):
    from engine.protocol.home import Home

    script = "import json, sys, time; print(json.dumps({'device_bytes': 5}), flush=True); time.sleep(60)"
    plain = launch_forecast.subprocess.run
    asked: list[list[str]] = []

    def run(command: list[str], **how: Any) -> Any:
        asked.append(command)
        return plain([sys.executable, "-c", script], **how)

    monkeypatch.setattr(launch_forecast.subprocess, "run", run)
    monkeypatch.setattr(launch_forecast, "SECONDS", 2)
    home = Home(tmp_path)
    assert launch_forecast._ask(home.run("run"), home) == {"device_bytes": 5}
    assert asked[0][asked[0].index("--job") + 1] == "run"


def test_a_run_without_a_forecast_goes_on(tmp_path, monkeypatch):
    journal, profile = _launch(tmp_path / "plain", monkeypatch, None)
    assert (journal.warned, profile.launch.strategy) == ([], "ddp")
    journal, _ = _launch(tmp_path / "auto", monkeypatch, None, "launch.strategy=auto", "launch.processes=2")
    assert journal.warned == ["forecast.strategy"]
    journal, _ = _launch(tmp_path / "cpu", monkeypatch, _found(30 * GB), cards=0)  # not even asked for
    assert journal.warned == []
