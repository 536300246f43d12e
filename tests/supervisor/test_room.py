"""What is said at submission of a run that has a forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config import forecasts
from engine.config.profile import find, load, parse
from engine.hardware import host_memory
from engine.protocol.messages import Device, ProblemError, Submit
from engine.supervisor import room

GB = 10**9


CPU = forecasts.Place("cpu", "CPU")


def forecast(device: int = 0, host: int = 4 * GB, error: float = 10.0, **further: Any) -> dict[str, Any]:
    sizes = {"device_bytes": device, "host_bytes": host, "disk_bytes": GB, "seconds": None, "error_percent": error}
    least = {"device_bytes": device, "host_bytes": host}
    return sizes | {"certain": True, "least": least, "inputs": forecasts.stamp([Path("/")])} | further


@pytest.mark.parametrize(
    ("needed", "room", "expected"),
    [
        (10, None, "unknown"),
        (8, 10, "fits"),
        (90, 100, "fits"),
        (95, 100, "near"),
        (110, 100, "near"),
        (112, 100, "too_large"),
    ],
)
def test_a_verdict_counts_the_error(needed, room, expected):
    assert forecasts.judge(needed, 10.0, room) == expected


def test_the_worst_of_card_and_host_counts():
    found = forecast(device=20 * GB, host=30 * GB)
    assert forecasts.judge_all(found, 24 * GB, 64 * GB) == "fits"
    assert forecasts.judge_all(found, 20 * GB, 64 * GB) == "near"
    assert forecasts.judge_all(found, 24 * GB, 20 * GB) == "too_large"
    assert forecasts.judge_all(found, None, 64 * GB) == "unknown"
    assert forecasts.judge_all(forecast(), None, 64 * GB) == "fits"  # no cards, so none is asked for


def test_a_line_says_it_all():
    found = forecast(device=14_200_000_000, host=31 * GB, error=6.3, card_bytes=24 * GB) | {"seconds": 10_800.0}
    found["disk_bytes"] = 12 * GB
    assert forecasts.summarize(found) == "14.2 of 24 GB ±0.9 a card · 31.0 GB host · 12.0 GB disk · about 3 h"
    assert forecasts.summarize(forecast()) == "4.0 GB ±400 MB host · 1.0 GB disk · time unknown"


def test_changed_settings_have_another_key(monkeypatch):
    profile = load(find("triples-qlora"))
    place = forecasts.Place("cuda", "Fake", 24 * GB)
    key = forecasts.compute_key(profile, place, 1)
    assert key == forecasts.compute_key(parse(profile.to_yaml(), "again", profile.directory), place, 1)
    assert key != forecasts.compute_key(load(find("triples-qlora"), ["adapter.rank=3"]), place, 1)
    assert key != forecasts.compute_key(profile, place, 2)
    assert key != forecasts.compute_key(profile, forecasts.Place("cuda", "Fake", 80 * GB), 1)
    assert key != forecasts.compute_key(profile, forecasts.Place("cuda", "Other", 24 * GB), 1)
    assert key == forecasts.compute_key(load(find("triples-qlora"), ["logging.plots=false"]), place, 1)
    monkeypatch.setattr(forecasts, "_list_versions", lambda: ("torch 99",))
    assert key != forecasts.compute_key(profile, place, 1)


def _card(total: int | None) -> Device:
    return Device(index=0, kind="nvidia", name="Fake", memory_total=total, memory_used=0)


def test_only_a_run_that_cannot_fit_is_refused(bare_home):
    profile = load(find("triples-qlora"))
    cards = [_card(24 * GB)]
    assert room.check_memory(profile, bare_home, cards, idle=True) == ""  # no forecast

    def check(device: int, total: int | None = 24 * GB, **further: Any) -> str:
        changes = [{"settings": {"training.gradient_checkpointing": True}, "device_bytes": 9 * GB, "host_bytes": 0}]
        found = forecast(device, host=1000, changes=changes, **further)
        key = forecasts.compute_key(profile, forecasts.find_place([_card(total)]), 1)
        forecasts.keep(bare_home, key, found)
        return room.check_memory(profile, bare_home, [_card(total)], idle=True)

    assert check(20 * GB) == ""
    assert "about 24.0 GB ±2.4 GB of 24.0 GB of a card" in check(24 * GB)
    assert check(500 * GB, None) == ""  # its memory is unknown
    assert "hardly fits" in check(30 * GB, certain=False)
    assert "hardly fits" in check(30 * GB, least=None)
    assert "hardly fits" in check(30 * GB, least={"device_bytes": 20 * GB, "host_bytes": 1})  # by one row at a time
    assert "hardly fits" in check(30 * GB, inputs=None)
    assert check(30 * GB, inputs=[["/nowhere", 1, 1]]) == ""  # of other rows
    assert check(30 * GB, inputs=3) == ""  # damaged
    assert "hardly fits" in check(20 * GB, host_bytes=10**15)  # what cards need of the host is guessed
    with pytest.raises(ProblemError) as refused:
        check(30 * GB)
    assert refused.value.problem.code == "memory.will_not_fit"
    assert "training.gradient_checkpointing=true (9.0 GB)" in refused.value.problem.hint


def test_what_a_run_takes_whatever_its_batch_is_refused_without_certainty(bare_home):
    profile = load(find("triples-qlora"))

    def check(size: int, **further: Any) -> str:
        guessed = {"certain": False, "least": None, "changes": []}
        stamps = {"inputs": None, "base_inputs": forecasts.stamp([Path("/")])}
        floors = {"floor": {"device_bytes": size, "host_bytes": 0}}
        found = forecast(30 * GB, host=1000, **{**guessed, **stamps, **floors, **further})
        forecasts.keep(bare_home, forecasts.compute_key(profile, forecasts.find_place([_card(24 * GB)]), 1), found)
        return room.check_memory(profile, bare_home, [_card(24 * GB)], idle=True)

    assert "hardly fits" in check(24 * GB)
    assert "hardly fits" in check(25 * GB, base_inputs=None)
    assert "hardly fits" in check(25 * GB, base_inputs=[["/nowhere", 1, 1]])  # of another base
    assert "hardly fits" in check(25 * GB, floor=None)
    with pytest.raises(ProblemError, match="alone take"):
        check(25 * GB, inputs=[["/nowhere", 1, 1]])  # of other rows, which do not matter
    with pytest.raises(ProblemError, match=r"alone take 25\.0 GB, and there are 24\.0 GB"):
        check(25 * GB)


def test_a_disk_without_room_for_the_checkpoints_that_are_kept_refuses_a_run(bare_home, monkeypatch):
    profile = load(find("triples-qlora"))
    free = 10 * GB
    monkeypatch.setattr(forecasts.shutil, "disk_usage", lambda _: type("", (), {"free": free}))

    def check(count: int, **further: Any) -> str:
        sizes = {"checkpoint_bytes": 3 * GB, "checkpoints": count, "disk_bytes": (count + 1) * 3 * GB}
        found = forecast(host=1000, **sizes, **further)
        forecasts.keep(bare_home, forecasts.compute_key(profile, CPU, 1), found)
        return room.check_memory(profile, bare_home, [], idle=True)

    assert check(2) == ""
    assert "writes up to 12.0 GB, and 10.0 GB are free" in check(3)
    assert "writes up to 15.0 GB" in check(4, inputs=None)  # of rows that are not known
    with pytest.raises(ProblemError) as refused:
        check(4)
    problem = refused.value.problem
    assert problem.code == "disk.low" and "4 of 3.0 GB" in problem.cause
    assert problem.hint == "set checkpoint.keep to 3, or free 2.0 GB of disk space"
    free = 2 * GB
    with pytest.raises(ProblemError, match=r"1 of 3\.0 GB"):
        check(1)


def test_a_busy_host_is_not_held_against_a_run(bare_home, monkeypatch):
    """On a host without cards free memory is compared; while another run takes it, all of it."""
    profile = load(find("triples-qlora"))
    forecasts.keep(bare_home, forecasts.compute_key(profile, CPU, 1), forecast(host=8 * GB))
    memory = type("", (), {"available": 2 * GB, "total": 16 * GB})
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(room.psutil, "swap_memory", lambda: type("", (), {"free": 0, "total": 0}))
    assert room.check_memory(profile, bare_home, [], idle=False) == ""
    assert "of the host's memory" in room.check_memory(profile, bare_home, [], idle=True)
    monkeypatch.setattr(room.host_memory, "read_total", lambda: 4 * GB)
    with pytest.raises(ProblemError, match="of the host's memory"):
        room.check_memory(profile, bare_home, [], idle=False)


def test_a_control_group_limits_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(
        host_memory.psutil, "virtual_memory", lambda: type("", (), {"total": 16 * GB, "available": 9 * GB})
    )
    monkeypatch.setattr(host_memory.psutil, "swap_memory", lambda: type("", (), {"total": GB}))
    assert host_memory.read_total(tmp_path) == 17 * GB
    group = tmp_path / "sys/fs/cgroup/user/job"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n")
    (group / "memory.max").write_text("max\n")
    assert host_memory.read_total(tmp_path) == 17 * GB
    (group.parent / "memory.max").write_text(f"{8 * GB}\n")
    assert host_memory.read_total(tmp_path) == 9 * GB
    assert host_memory.read_available(tmp_path) == 9 * GB  # what the group uses is not known
    (group.parent / "memory.current").write_text(f"{7 * GB}\n")
    (group.parent / "memory.stat").write_text(f"anon {5 * GB}\ninactive_file {GB}\n")
    assert host_memory.read_available(tmp_path) == 2 * GB


def test_an_engine_refuses_it_and_leaves_nothing_behind(engine):
    profile = load(find("triples-qlora"))
    sent = parse(profile.to_yaml(), "profile", Path("/"))
    forecasts.keep(engine.home, forecasts.compute_key(sent, CPU, 1), forecast(host=10**15, changes=[]))
    with pytest.raises(ProblemError) as refused:
        engine.client.request("submit", Submit(profile=profile.to_yaml(), kind="train", directory="/"))
    assert refused.value.problem.code == "memory.will_not_fit"
    assert not list(engine.home.runs.iterdir())


def test_old_forecasts_are_removed(bare_home, monkeypatch):
    monkeypatch.setattr(forecasts, "KEPT", 3)
    for number in range(6):
        forecasts.keep(bare_home, f"{number:024x}", forecast())
    (forecasts.folder(bare_home) / "calibration.json").write_text("{}")
    for number in range(6):
        forecasts.keep(bare_home, f"{number:024x}", forecast())
    assert len(list(forecasts.folder(bare_home).glob("?" * 24 + ".json"))) == 3
    assert (forecasts.folder(bare_home) / "calibration.json").is_file()
    assert forecasts.read(bare_home, f"{5:024x}") is not None
    (forecasts.folder(bare_home) / f"{5:024x}.json").write_text("{")
    assert forecasts.read(bare_home, f"{5:024x}") is None
