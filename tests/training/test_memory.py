"""Out of memory: the same global batch in smaller pieces, from the last completed step."""

from __future__ import annotations

import pytest

from engine.config.profile import parse
from engine.models.memory import is_out_of_memory
from engine.protocol.journal import End, Ledger, Start, Warn
from engine.training import memory
from tests.training import faulty
from tests.training.harness import PROFILE
from tests.training.here import Here

LONG = ("training.epochs=2", "checkpoint.every_steps=5", "training.micro_batch=4", "training.accumulation=1")


@pytest.fixture
def limit(monkeypatch):
    """Room for so many tokens, simulated: the model's forward pass raises OutOfMemoryError beyond."""
    from engine.training import model

    monkeypatch.setattr(model, "build", model.build)  # put back afterwards
    return faulty.run_out


def _cuts(run) -> list[tuple[int, str, int]]:
    return [(entry.step, entry.name, entry.new) for entry in run.entries(Ledger) if entry.name != "resume"]


def test_a_batch_that_does_not_fit_is_cut_and_the_losses_stay(tmp_path, prepared, limit):
    small = Here(tmp_path, "small", prepared, *LONG, "training.micro_batch=2", "training.accumulation=2")
    small.train()
    limit(80)
    run = Here(tmp_path, "cut", prepared, *LONG, "training.rehearsal=false")
    assert run.train() == ("completed", 14)
    cut_at = run.entries(Ledger)[0].step
    assert cut_at > 0  # some steps fitted
    assert _cuts(run) == [(cut_at, "training.micro_batch", 2), (cut_at, "training.accumulation", 2)]
    assert [entry.step for entry in run.entries(Start)] == [0, cut_at]
    assert "out of memory" in next(e.message for e in run.entries(Warn) if "memory" in e.message)
    assert [entry.global_batch for entry in run.entries(Start)] == [4, 4]
    assert list(run.series("train/loss")) == list(range(1, 15))
    assert run.series("train/loss") == pytest.approx(small.series("train/loss"), rel=1e-5)


def test_a_rehearsal_finds_it_in_the_first_minute_and_a_resume_keeps_the_cut(tmp_path, prepared, limit):
    limit(70)
    run = Here(tmp_path, "rehearsed", prepared, *LONG)
    run.train()
    assert [entry.step for entry in run.entries(Start)] == [0, 0]
    assert _cuts(run)[:2] == [(0, "training.micro_batch", 2), (0, "training.accumulation", 2)]
    run.train("training.epochs=3")
    assert len(_cuts(run)) == 2  # not found out again


def test_one_row_that_does_not_fit_ends_the_run(tmp_path, prepared, limit):
    import torch

    limit(5)
    run = Here(tmp_path, "hopeless", prepared, *LONG)
    with pytest.raises(torch.OutOfMemoryError, match="more than 5 tokens"):
        run.train()
    assert [new for _, name, new in _cuts(run) if name == "training.micro_batch"] == [2, 1]


def test_batches_are_cut_to_the_same_product():
    for rows, by in ((8, (4, 2)), (9, (3, 3)), (7, (1, 7)), (6, (3, 2))):
        profile = parse(PROFILE.format(base="a/b"), "test", "/", [f"training.micro_batch={rows}"])
        cut = memory.smaller_micro_batch(profile).training
        assert (cut.micro_batch, cut.accumulation) == by
    assert (
        memory.smaller_micro_batch(parse(PROFILE.format(base="a/b"), "test", "/", ["training.micro_batch=1"])) is None
    )


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.slow
def test_two_ranks_agree_when_one_runs_out(start_run):
    run = start_run("ranks", *LONG, "training.micro_batch=2", "launch.processes=2", "training.rehearsal=false")
    run.start(processes=2, fault="oom:40:1")
    assert run.wait() == 0, run.log()
    assert run.entries(End)[-1].status == "completed"
    whole = start_run("whole", *LONG, "training.micro_batch=1", "training.accumulation=2", "launch.processes=2")
    whole.train(processes=2)
    assert [entry.new for entry in run.entries(Ledger)] == [1, 2]
    assert run.series("train/loss") == pytest.approx(whole.series("train/loss"), rel=1e-5)
