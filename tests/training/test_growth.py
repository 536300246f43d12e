"""`training.micro_batch: auto`: the largest micro-batch that fits, the same global batch, found out once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.options.tables import AUTO as SEARCH
from engine.protocol.journal import Ledger, Start, Warn
from engine.training import growth
from engine.training.evaluator import Evaluator
from engine.training.memory import MemoryWatch
from engine.training.online.batching import PromptBatches
from engine.training.online.method import OnlineMethod
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


def test_a_resume_with_another_accumulation_searches_again(tmp_path, prepared, limit):
    limit(70)
    run = Here(tmp_path, "again", prepared, *AUTO)
    run.train()
    assert run.train("training.epochs=2", "training.accumulation=8") == ("completed", 8)
    assert _changes(run)[2:] == [(7, "training.micro_batch", SEARCH, 2), (7, "training.accumulation", 8, 4)]
    assert [entry.step for entry in run.entries(Start)] == [0, 0, 7, 7]
    assert list(run.series("train/loss")) == list(range(1, 9))


def test_what_an_evaluation_has_no_room_for_is_cut_again(tmp_path, prepared, monkeypatch):
    import torch

    def rehearse(self: Any) -> None:
        if self._loop.batches.micro_batch > 2:
            raise torch.OutOfMemoryError("a fault of the test")

    monkeypatch.setattr(Evaluator, "rehearse", rehearse)
    run = Here(tmp_path, "evaluated", prepared, *AUTO, "training.max_steps=1")
    assert run.train() == ("completed", 1)
    assert _changes(run)[2:] == [(0, "training.micro_batch", 4, 2), (0, "training.accumulation", 1, 2)]


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


def test_the_peak_of_what_did_not_fit_is_not_that_of_a_smaller_size(monkeypatch):
    """A card of 1000 bytes, whose allocator keeps its peak; each row takes 140."""
    peak = [0]

    def compute(batches: list[list[int]], units: float) -> None:
        with memory.catch():
            peak[0] = max(peak[0], min(1000, 140 * len(batches[0])))
            if 140 * len(batches[0]) > 1000:
                raise MemoryError

    memory = MemoryWatch()
    loop: Any = SimpleNamespace(
        profile=SimpleNamespace(training=SimpleNamespace(accumulation=12)),
        batches=SimpleNamespace(lengths=[5] * 20, skipped=()),
        method=SimpleNamespace(rows=range(20), longest_batch=list, units=len),
        ranks=SimpleNamespace(sum=lambda values: values, world=1),
        reporter=SimpleNamespace(link=SimpleNamespace(report_progress=lambda: None)),
        memory=memory,
        compute_gradients=compute,
    )
    monkeypatch.setattr(growth.accelerator, "read_peak", lambda: peak[0])
    monkeypatch.setattr(growth.accelerator, "read_room", lambda: 1000)
    monkeypatch.setattr(growth.accelerator, "reset_peak", lambda: peak.__setitem__(0, 0))
    assert growth._find_largest(loop) == 6


def test_replies_are_tried_and_not_prompts():
    batches = PromptBatches([3, 9, 5], 1, 8, 0, 1, 0, 4, 1)
    loop: Any = SimpleNamespace(batches=batches)
    assert growth._list_longest(loop, 5) == [1, 2, 0, 1, 2]
    method: Any = SimpleNamespace(
        job=SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)),
        options=SimpleNamespace(max_new_tokens=3),
        profile=SimpleNamespace(training=SimpleNamespace(rows=1)),
        _add_log_probs=lambda found: None,
        _collate_rollouts=lambda found: found,
    )
    assert len(OnlineMethod.longest_batch(method, [{"prompt_ids": [1]}] * 5)) == 5  # type: ignore[arg-type]


def test_what_a_row_takes_bounds_what_is_tried_on_a_host(monkeypatch):
    """Each row takes 10 bytes of a process that began with 100; 60 more are free than that."""
    resident, asked = [100], []

    def attempt(loop: Any, rows: int) -> bool:
        resident[0] = 90 + 10 * rows
        return True

    def has_room(loop: Any, more: int) -> bool:
        asked.append(more)
        return resident[0] + more <= 170 or resident[0] == 100

    monkeypatch.setattr(growth, "_try", attempt)
    monkeypatch.setattr(growth, "_has_room", has_room)
    monkeypatch.setattr(growth.memory_report, "read_resident_peak", lambda: resident[0])
    loop: Any = SimpleNamespace(profile=SimpleNamespace(training=SimpleNamespace(accumulation=12)))
    assert growth._find_largest(loop) == 6
    assert asked == [100, 20, 80, 20]


def test_the_margin_is_left_on_a_card_and_on_the_host(monkeypatch):
    loop: Any = SimpleNamespace(ranks=SimpleNamespace(sum=lambda values: values, world=2))
    monkeypatch.setattr(growth.accelerator, "read_room", lambda: 1000)
    for peak, enough in ((900, True), (901, False)):
        monkeypatch.setattr(growth.accelerator, "read_peak", lambda peak=peak: peak)
        assert growth._has_room(loop, 10**9) is enough
    monkeypatch.setattr(growth.accelerator, "read_peak", lambda: None)
    monkeypatch.setattr(growth.host_memory, "read_available", lambda: 500)
    monkeypatch.setattr(growth.host_memory, "read_total", lambda: 1000)
    assert growth._has_room(loop, 200) and not growth._has_room(loop, 201)


def test_it_needs_the_rehearsal():
    with pytest.raises(ProfileError, match=r"training\.rehearsal"):
        parse(PROFILE.format(base="a/b"), "test", "/", ["training.micro_batch=auto", "training.rehearsal=false"])
