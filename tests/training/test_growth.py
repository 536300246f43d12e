"""`training.micro_batch: auto`: the largest micro-batch that fits, the same global batch, found out once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.protocol.journal import Ledger, Start, Warn
from engine.training import growth
from tests.training import faulty
from tests.training.harness import PROFILE
from tests.training.here import Here

AUTO = ("training.epochs=1", "checkpoint.every_steps=5", "training.micro_batch=auto", "training.accumulation=4")


@pytest.fixture
def limit(monkeypatch):
    """Room for so many tokens, simulated: the model's forward pass raises OutOfMemoryError beyond."""
    from engine.training import model

    monkeypatch.setattr(model, "build", model.build)  # put back afterwards
    return faulty.run_out


def _changes(run: Here) -> list[tuple[int, str, Any, int]]:
    return [(entry.step, entry.name, entry.old, entry.new) for entry in run.entries(Ledger) if entry.name != "resume"]


def test_it_grows_to_what_fits_and_a_resume_goes_on_with_it(tmp_path, prepared, limit):
    fixed = Here(tmp_path, "fixed", prepared, *AUTO, "training.micro_batch=2", "training.accumulation=2")
    fixed.train()
    fixed.train("training.epochs=2")
    limit(70)
    run = Here(tmp_path, "grown", prepared, *AUTO)
    assert run.train() == ("completed", 7)
    found = [(0, "training.micro_batch", "auto", 2), (0, "training.accumulation", 4, 2)]
    assert _changes(run) == found
    assert [entry.global_batch for entry in run.entries(Start)] == [4, 4]
    assert [entry.code for entry in run.entries(Warn) if entry.code.startswith("memory.")] == ["memory.batch_found"]
    assert run.series("train/loss") == {step: loss for step, loss in fixed.series("train/loss").items() if step <= 7}
    starts = len(run.entries(Start))
    run.train("training.epochs=2")
    assert len(run.entries(Start)) == starts + 1 and _changes(run) == found  # not found out again
    assert run.series("train/loss") == fixed.series("train/loss")
    assert run.entries(Start)[-1].resumed == fixed.entries(Start)[-1].resumed


def test_all_rows_of_a_global_batch_are_the_most(tmp_path, prepared):
    run = Here(tmp_path, "whole", prepared, *AUTO, "training.max_steps=1")
    run.train()
    assert _changes(run) == [(0, "training.micro_batch", "auto", 4), (0, "training.accumulation", 4, 1)]


@pytest.mark.parametrize(
    ("total", "room", "most", "tried"),
    [(16, 5, 4, [2, 4, 8]), (12, 7, 6, [2, 4, 12, 6]), (12, 99, 12, [2, 4, 12]), (7, 3, 1, [7]), (1, 9, 1, [])],
)
def test_sizes_divide_the_global_batch(monkeypatch, total, room, most, tried):
    seen: list[int] = []
    monkeypatch.setattr(growth, "_try", lambda loop, rows: seen.append(rows) or rows <= room)
    monkeypatch.setattr(growth, "_has_room", lambda loop, more: True)
    loop: Any = SimpleNamespace(profile=SimpleNamespace(training=SimpleNamespace(accumulation=total)))
    assert growth._find_largest(loop) == most
    assert seen == tried


def test_the_margin_is_left_on_a_card_and_on_the_host(monkeypatch):
    loop: Any = SimpleNamespace(ranks=SimpleNamespace(sum=lambda values: values, world=2))
    monkeypatch.setattr(growth.accelerator, "read_room", lambda: 1000)
    for peak, enough in ((900, True), (901, False)):
        monkeypatch.setattr(growth.accelerator, "read_peak", lambda peak=peak: peak)
        assert growth._has_room(loop, 10**9) is enough
    monkeypatch.setattr(growth.accelerator, "read_peak", lambda: None)
    monkeypatch.setattr(growth.psutil, "virtual_memory", lambda: SimpleNamespace(available=500, total=1000))
    assert growth._has_room(loop, 200) and not growth._has_room(loop, 201)


def test_it_needs_the_rehearsal():
    with pytest.raises(ProfileError, match=r"training\.rehearsal"):
        parse(PROFILE.format(base="a/b"), "test", "/", ["training.micro_batch=auto", "training.rehearsal=false"])
