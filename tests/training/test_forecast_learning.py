"""What forecasts learn from the runs before, the hosts that they are for, and the settings that they suggest."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from engine.config.profile import parse
from engine.protocol.journal import Memory
from engine.protocol.messages import ProblemError
from engine.training.forecast import apply, calibration, estimate, hosts, solver
from engine.training.forecast.estimate import Given
from engine.training.forecast.hosts import Host
from engine.training.forecast.trace import Trace
from engine.workers import forecast as worker
from tests.training.harness import PROFILE
from tests.training.here import Here

GB = 10**9


def _profile(*changes: str) -> Any:
    return parse(PROFILE.format(base="a/b"), "test", Path("/"), changes)


def test_three_runs_correct_the_next_forecast(bare_home):
    assert calibration.read(bare_home, "card", "cuda") == calibration.Calibration()
    for number, actual in enumerate((1100, 1200, 1180)):
        calibration.add(bare_home, "card", run=f"run-{number}", forecast=1000, actual=actual, flops=5.0)
    found = calibration.read(bare_home, "card", "cuda")
    assert found.factor == pytest.approx(1.18)
    assert 2 <= found.error_percent < 10
    assert (found.flops, found.runs) == (5.0, 3)
    assert calibration.read(bare_home, "another", "cpu").error_percent == calibration.ASSUMED["cpu"]


def test_a_correction_is_bounded(bare_home):
    for number in range(3):
        calibration.add(bare_home, "small", run=f"run-{number}", forecast=1000, actual=100)
        calibration.add(bare_home, "large", run=f"run-{number}", forecast=1000, actual=9000)
    assert calibration.read(bare_home, "small", "cuda").factor == 0.8
    assert calibration.read(bare_home, "large", "cuda").factor == 1.25


def test_a_run_that_goes_on_counts_once(bare_home):
    for actual in (1100, 1150):
        calibration.add(bare_home, "card", run="same", forecast=1000, actual=actual)
    assert [run["actual"] for run in calibration.list_runs(bare_home)["card"]] == [1150]


def test_damaged_calibration_is_none(bare_home):
    calibration.add(bare_home, "card", run="same", forecast=1000, actual=1)
    (bare_home.root / "forecasts" / "calibration.json").write_text("[")
    assert calibration.list_runs(bare_home) == {}


def test_cards_are_named_by_size_or_type():
    assert hosts.parse_card("24GB") == (1, 24 * GB, "")
    assert hosts.parse_card("8x80GB") == (8, 80 * GB, "")
    assert hosts.parse_card("2 x 24 GiB") == (2, 24 * 2**30, "")
    assert hosts.parse_card("16") == (1, 16 * GB, "")
    assert hosts.parse_card("8xH100") == (8, 80 * GB, "H100")
    for name in ("RTX 4090", "rtx4090", "4090", "NVIDIA GeForce RTX 4090"):
        assert hosts.parse_card(name) == (1, 24 * GB, "RTX 4090")
    assert hosts.parse_card("a6000") == (1, 48 * GB, "RTX A6000")
    assert hosts.parse_card("A100") == (1, 40 * GB, "A100")
    assert hosts.parse_card("2xA100-80GB") == (2, 80 * GB, "A100")
    assert hosts.parse_card("T4") == (1, 16 * GB, "T4")
    for wrong in ("", "much", "0GB", "x24GB", "24TB", "T400", "RTX 4090 Laptop", "H101 80GB", "0xH100"):
        with pytest.raises(ProblemError) as refused:
            hosts.parse_card(wrong)
        assert refused.value.problem.code == "forecast.card_size"
    with pytest.raises(ProblemError) as refused:
        hosts.parse_card("H1000")
    assert "H100" in refused.value.problem.hint


def test_a_named_type_has_a_speed_and_a_size_has_none():
    assert hosts.find(_profile(), "H100 PCIe", None).list_flops("bfloat16") == 756e12 * hosts.ACHIEVED
    assert hosts.find(_profile(), "H100", None).list_flops("float32") is None
    assert hosts.find(_profile(), "80GB", None).list_flops("bfloat16") is None


def test_the_time_counts_the_losses_of_held_out_rows():
    traced = Trace(flops=600, tokens=10, epoch_tokens=100, steps=10, steps_per_epoch=10, held_out_flops=500)
    given = Given(None, {}, None, True, 0)  # type: ignore[arg-type]
    host = Host("cuda", "H100", 1, GB, None)

    def count(*changes: str) -> float | None:
        return estimate._estimate_seconds(_profile(*changes), traced, host, 2.0, given)

    assert count() == 600 / 10 * 100 / 2 + 500 / 2  # at the end
    assert count("evaluation.every_steps=5", "evaluation.at_start=true") == 600 / 10 * 100 / 2 + 3 * 500 / 2
    assert estimate._estimate_seconds(_profile(), traced, host, None, given) is None


@pytest.mark.parametrize(
    ("changes", "cards", "message"),
    [
        ((), 3, "32 rows, with launch.processes 1: name 2 or 4 cards"),
        ((), 64, "32 rows, with launch.processes 1: name 32 cards"),
        (
            ("training.micro_batch=1", "training.tokens_per_batch=640"),
            3,
            "4 passes, with launch.processes 1: name 2 or 4",
        ),
    ],
)
def test_cards_that_would_change_the_global_batch_are_refused(changes, cards, message, bare_home):
    profile = _profile("training.micro_batch=8", "training.accumulation=4", *changes)
    with pytest.raises(ProblemError) as refused:
        worker.find_ways(profile, bare_home, f"{cards}x24GB")
    problem = refused.value.problem
    assert problem.code == "forecast.card_count" and message in f"{problem.cause}: {problem.hint}"


def test_a_named_number_of_cards_counts():
    assert hosts.find(_profile(), "8x80GB", None).cards == 8
    assert hosts.find(_profile(), "8x80GB", 2).cards == 2
    assert hosts.find(_profile("launch.processes=3"), "80GB", None).cards == 3


def test_changes_keep_the_global_batch_and_come_in_the_order_of_their_cost():
    profile = _profile("training.micro_batch=4", "training.accumulation=2")
    host = Host("cuda", "a card", 2, 24 * GB, None)
    changes = solver.list_changes(profile, host)
    assert [change["time"] for change in changes] == sorted(change["time"] for change in changes)
    for change in changes:
        settings = change["settings"]
        rows = settings.get("training.micro_batch", 4) * settings.get("training.accumulation", 2)
        assert rows == 8
    assert {"training.gradient_checkpointing": True} in [change["settings"] for change in changes]
    assert {"model.quantization": "nf4"} in [change["settings"] for change in changes]
    alone = solver.list_changes(profile, Host("cuda", "a card", 1, 24 * GB, None))
    assert not [change for change in alone if "launch.strategy" in change["settings"]]


def test_the_first_strategy_that_fits_takes_the_place_of_auto(monkeypatch):
    needed = {"ddp": 40 * GB, "zero1": 30 * GB, "zero2": 20 * GB, "fsdp": 10 * GB}
    monkeypatch.setattr(
        solver,
        "estimate",
        lambda profile, host, given: {
            "device_bytes": needed[profile.launch.strategy],
            "host_bytes": 1,
            "error_percent": 10.0,
        },
    )
    profile = _profile("launch.strategy=auto", "launch.processes=8")

    def choose(card: int) -> str:
        return solver.choose_strategy(profile, Host("cuda", "", 8, card, None), None)[1].launch.strategy

    assert [choose(size * GB) for size in (80, 34, 24, 12, 4)] == ["ddp", "zero1", "zero2", "fsdp", "fsdp"]
    assert solver.choose_strategy(profile, Host("cuda", "", 1, GB, None), None)[1].launch.strategy == "ddp"
    paged = _profile("launch.strategy=auto", "launch.processes=8", "training.optimizer=adafactor")
    chosen = solver.choose_strategy(paged, Host("cuda", "", 8, 4 * GB, None), None)[1].launch.strategy
    assert chosen == "zero1"  # the others do not go with this optimiser


@pytest.mark.parametrize(
    ("processes", "cards", "expected"),
    [(1, 1, (8, 4)), (1, 8, (4, 1)), (1, 4, (8, 1)), (2, 4, (8, 2)), (1, 3, (8, 4)), (8, 1, (8, 32))],
)
def test_more_cards_keep_the_global_batch(processes, cards, expected):
    profile = _profile("training.micro_batch=8", "training.accumulation=4", f"launch.processes={processes}")
    settings = solver.spread(profile, Host("cuda", "a card", cards, 24 * GB, None))
    found = tuple(
        settings.get(f"training.{name}", getattr(profile.training, name)) for name in ("micro_batch", "accumulation")
    )
    assert found == expected


def test_micro_batches_are_halved_until_one_fits(monkeypatch):
    tried = []

    def estimate(profile: Any, host: Any, given: Any) -> dict[str, Any]:
        tried.append(profile.training.micro_batch)
        return {"device_bytes": profile.training.micro_batch * GB, "host_bytes": 1, "error_percent": 10.0}

    monkeypatch.setattr(solver, "estimate", estimate)
    profile = _profile("training.micro_batch=256", "training.accumulation=1")
    found = solver.find_changes(profile, Host("cuda", "a card", 1, 3 * GB, None), None)
    assert {"training.micro_batch": 2, "training.accumulation": 128} in [change["settings"] for change in found]
    assert all(change["verdict"] == "fits" for change in found)
    tried.clear()
    assert solver.find_changes(profile, Host("cuda", "a card", 1, 3 * GB, None), None, limit=-1) == []
    assert len(tried) == 1


def test_a_change_that_cannot_be_traced_is_not_suggested(monkeypatch):
    def estimate(*_: Any) -> Any:
        raise RuntimeError("no trace")

    monkeypatch.setattr(solver, "estimate", estimate)
    assert solver.find_changes(_profile("training.micro_batch=4"), Host("cuda", "", 1, GB, None), None) == []


def test_a_copy_elsewhere_finds_what_the_profile_names(tmp_path):
    source, target = tmp_path / "one" / "own.yaml", tmp_path / "two" / "fits.yaml"
    source.parent.mkdir()
    target.parent.mkdir()
    (source.parent / "rows.jsonl").touch()
    source.write_text("model: {base: org/name}\ndata:\n  train: [rows.jsonl, {source: rows.jsonl}, other]\n")
    apply.write_copy(source, target, {"settings": {}, "time": 1.0, "device_bytes": 1, "host_bytes": 0}, [])
    found = YAML(typ="safe").load(target.read_text())
    rows = str(source.parent / "rows.jsonl")
    assert found["data"]["train"] == [rows, {"source": rows}, "other"]
    assert found["model"]["base"] == "org/name"


def test_a_copy_of_a_profile_says_why_it_was_changed(tmp_path):
    source, target = tmp_path / "own.yaml", tmp_path / "fits.yaml"
    source.write_text("# mine\nmodel: {base: a/b}\ntraining:\n  micro_batch: 8  # rows\n")
    way = {"settings": {"training.micro_batch": 1, "training.accumulation": 8, "launch.strategy": "zero2"}}
    apply.write_copy(source, target, {**way, "time": 1.2, "device_bytes": 9 * GB, "host_bytes": 0}, ["adapter.rank=4"])
    text = target.read_text()
    assert "# mine" in text
    assert "so that it fits: 9.0 GB, 1.2 times as long a step" in text
    found = YAML(typ="safe").load(io.StringIO(text))
    assert found["training"] == {"micro_batch": 1, "accumulation": 8}
    assert found["launch"] == {"strategy": "zero2"}
    assert found["adapter"] == {"rank": 4}
    with pytest.raises(ProblemError):
        apply.write_copy(source, target, {**way, "time": 1.0, "device_bytes": 1, "host_bytes": 0}, [])


def test_a_run_tells_what_it_takes(tmp_path, prepared):
    run = Here(tmp_path, "told", prepared, "training.max_steps=2")
    run.train()
    told = {entry.source: entry for entry in run.entries(Memory)}
    assert list(told) == ["rehearsed", "actual"]
    assert told["actual"].device_bytes is None
    # The kernel counts a process's memory in batches for each thread, so a peak may seem to fall a little.
    assert told["actual"].host_bytes >= 0.99 * told["rehearsed"].host_bytes > 10**8
    memory = json.loads(run.run.report.read_text())["memory"]
    assert memory["forecast"] is None
    assert memory["actual"]["host_bytes"] == told["actual"].host_bytes
