"""Large checkpoints are written while training goes on: whole or not at all, in order, and as exact as others."""

from __future__ import annotations

import errno
import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.protocol.journal import Checkpoint, Ledger, Metrics, Start, read
from engine.storage import manifest
from engine.training import background_writer, checkpointer, resume_point
from tests.training.here import Here, at

FULL = ("adapter={kind: none}", "training.epochs=2", "training.rehearsal=false", "checkpoint.every_steps=2")
FULL = (*FULL, "checkpoint.keep=20", "training.ema={decay: 0.9}", "training.micro_batch=4")
STEPS = 14


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_writer, "SMALLEST", 1)


def _slow(monkeypatch: pytest.MonkeyPatch, seconds: float, steps: tuple[int, ...]) -> None:
    """Writing these checkpoints takes so long."""
    write = manifest.write

    def slow(folder: Path, **facts: Any) -> None:
        if facts.get("step") in steps:
            time.sleep(seconds)
        write(folder, **facts)

    monkeypatch.setattr(manifest, "write", slow)


def _order(run: Here) -> list[tuple[str, int]]:
    entries = (entry for entry, _ in read(run.run.events))
    return [(type(entry).__name__, entry.step) for entry in entries if isinstance(entry, (Checkpoint, Metrics))]


def test_training_goes_on_while_a_checkpoint_is_written(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: None
) -> None:
    _slow(monkeypatch, 1.0, (2,))
    run = Here(tmp_path, "run", prepared, *FULL, "checkpoint.every_steps=6")
    run.changes = (*run.changes, "checkpoint.every_steps=2", "training.max_steps=3")
    began = time.perf_counter()
    run.train()
    order = _order(run)
    assert order.index(("Metrics", 3)) < order.index(("Checkpoint", 2)) < order.index(("Checkpoint", 3))
    assert time.perf_counter() - began > 1  # the last save has waited for it
    assert run.run.checkpoint_steps() == [2, 3]
    assert not list(run.run.checkpoints.glob(".step-*"))


def _content(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            found[name] = torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            found[name] = load_file(path)
        elif path.is_file() and name != manifest.FILE:
            found[name] = path.read_text()
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def test_it_is_the_checkpoint_that_would_have_been_written_at_once(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Here(tmp_path, "plain", prepared, *FULL)
    assert plain.train() == ("completed", STEPS)
    monkeypatch.setattr(background_writer, "SMALLEST", 1)
    _slow(monkeypatch, 0.3, (4, 8))
    copied = Here(tmp_path, "copied", prepared, *FULL)
    assert copied.train() == ("completed", STEPS)
    assert copied.series("train/loss") == plain.series("train/loss")
    assert copied.run.checkpoint_steps() == plain.run.checkpoint_steps() == list(range(2, STEPS + 1, 2))
    for step in plain.run.checkpoint_steps():
        one, other = _content(plain.run.checkpoint(step)), _content(copied.run.checkpoint(step))
        assert one.keys() == other.keys()
        for name in one.keys() - {"trainer/ranks.pt"}:  # which holds times
            assert _same(one[name], other[name]), (step, name)
        assert resume_point.find_damage(copied.run.checkpoint(step)) == ""
    entries = copied.entries(Checkpoint)
    assert [entry.step for entry in entries] == list(range(2, STEPS + 1, 2))
    assert [(e.metrics, e.best) for e in entries] == [(e.metrics, e.best) for e in plain.entries(Checkpoint)]

    again = Here(tmp_path, "again", prepared, *FULL)
    again.train(orders=at(7, "stop"))
    assert again.train(from_step=4) == ("completed", STEPS)
    assert again.entries(Start)[-1].resumed == "exact"
    assert again.series("train/loss") == plain.series("train/loss")


def test_a_stop_and_pruning_wait_for_the_write(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: None
) -> None:
    _slow(monkeypatch, 0.5, (2, 4))
    run = Here(tmp_path, "run", prepared, *FULL, "checkpoint.keep=1", "evaluation.every_steps=2")
    assert run.train(orders=at(5, "stop")) == ("stopped", 5)
    entries = run.entries(Checkpoint)
    assert [entry.step for entry in entries] == [2, 4, 5]
    (best,) = [entry.step for entry in entries if entry.best][-1:]
    assert run.run.checkpoint_steps() == sorted({best, 5})
    assert run.train() == ("completed", STEPS) and run.entries(Start)[-1].resumed == "exact"


def test_a_full_disk_pauses_the_run_and_the_same_checkpoint_is_tried_again(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: None
) -> None:
    plain = Here(tmp_path, "plain", prepared, *FULL)
    plain.train()
    write, tried = checkpointer.write_folder, []

    def full(folder: Path, *arguments: Any) -> None:
        tried.append(folder.name)
        if tried.count("step-00000004") <= 2 and folder.name == "step-00000004":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, *arguments)

    monkeypatch.setattr(checkpointer, "write_folder", full)

    def orders(run: Here) -> list[tuple[str, dict[str, Any]]]:
        ledger = [entry.name for entry in run.entries(Ledger)]
        return [("continue", {})] if ledger.count("pause") > ledger.count("continue") else []

    run = Here(tmp_path, "run", prepared, *FULL)
    assert run.train(orders=orders) == ("completed", STEPS)
    assert tried.count("step-00000004") == 3
    pauses = [entry for entry in run.entries(Ledger) if entry.name == "pause"]
    assert {entry.code for entry in pauses} == {"pause.disk_low"} and 1 <= len(pauses) <= 2
    assert [entry.step for entry in run.entries(Checkpoint)] == list(range(2, STEPS + 1, 2))
    assert run.series("train/loss") == plain.series("train/loss")
    one, other = _content(plain.run.checkpoint(4)), _content(run.run.checkpoint(4))
    assert all(_same(one[name], other[name]) for name in one.keys() - {"trainer/ranks.pt"})


def test_an_error_that_is_not_the_disks_fails_the_run(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: None
) -> None:
    def broken(folder: Path, *arguments: Any) -> None:
        raise TypeError("no such tensor")

    monkeypatch.setattr(checkpointer, "write_folder", broken)
    with pytest.raises(TypeError, match="no such tensor"):
        Here(tmp_path, "run", prepared, *FULL).train()


def test_what_is_small_or_leaves_no_memory_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 40 * 2**30

    monkeypatch.setattr(background_writer.psutil, "virtual_memory", Memory)
    sizes = [2**20, 2**30 - 1, 2**30, 20 * 2**30, 20 * 2**30 + 1]
    assert list(map(background_writer.is_worthwhile, sizes)) == [False, False, True, True, False]


def test_a_copy_shares_nothing() -> None:
    state = {"state": {0: {"exp_avg": torch.ones(3), "step": 2}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    copied = background_writer.copy_to_host(OrderedDict(state))
    state["state"][0]["exp_avg"].zero_()  # type: ignore[index]
    state["groups"][0]["lr"] = 0.0  # type: ignore[index]
    assert copied["state"][0]["exp_avg"].tolist() == [1, 1, 1] and copied["groups"][0]["lr"] == 0.1
    assert background_writer.count_bytes(copied) == 12


def test_an_adapter_is_written_at_once(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: None
) -> None:
    monkeypatch.setattr(background_writer.BackgroundWriter, "start", lambda *_: pytest.fail("in the background"))
    Here(tmp_path, "run", prepared, "training.rehearsal=false", "checkpoint.every_steps=2").train()


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written_leaves_the_one_before(start_run: Any) -> None:
    settings = tuple(each for each in FULL if "ema" not in each)
    whole = start_run("whole", *settings)
    whole.train()
    run = start_run("killed", *settings)
    run.start(fault="background:6")
    assert run.wait() != 0
    assert run.run.checkpoint_steps() == [2, 4]
    assert [entry.step for entry in run.entries(Checkpoint)] == [2, 4]
    assert max(entry.step for entry in run.entries(Metrics)) > 6  # training had gone on
    assert len(list(run.run.checkpoints.glob(".step-00000006*"))) == 1
    run.train()
    assert not list(run.run.checkpoints.glob(".step-*"))
    start = run.entries(Start)[-1]
    assert (start.step, start.resumed) == (4, "exact")
    assert run.series("train/loss") == whole.series("train/loss")
    assert json.loads((run.run.checkpoint(STEPS) / manifest.FILE).read_text())["step"] == STEPS


@pytest.mark.slow
def test_two_ranks_that_share_the_states_write_beside_training(start_run: Any) -> None:
    settings = (*FULL, "launch.processes=2", "launch.strategy=zero1", "training.micro_batch=2")
    plain, beside = start_run("plain", *settings), start_run("beside", *settings)
    plain.train(processes=2)
    beside.start(processes=2, fault="beside:")
    assert beside.wait() == 0, beside.log()
    assert beside.series("train/loss") == plain.series("train/loss")
    assert [entry.step for entry in beside.entries(Checkpoint)] == list(range(2, STEPS + 1, 2))
    for step in (4, STEPS):
        one, other = _content(plain.run.checkpoint(step)), _content(beside.run.checkpoint(step))
        assert all(_same(one[name], other[name]) for name in one.keys() - {"trainer/ranks.pt"})
