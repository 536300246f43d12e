"""A resume that is not of the same shape: other ranks, another global batch, fewer epochs, and TensorBoard's steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.protocol.journal import End, Metrics, Start, Warn
from engine.protocol.messages import ProblemError
from tests.training.here import Here, at

TWO_EPOCHS = ("training.epochs=2", "training.rehearsal=false", "checkpoint.keep=9")


def test_another_global_batch_says_how_much_is_repeated_or_left_out(prepared: dict[str, Any], tmp_path: Path) -> None:
    run = Here(tmp_path, "run", prepared, *TWO_EPOCHS, "checkpoint.every_steps=3")  # 27 rows: 7 steps an epoch
    run.train(orders=at(3, "stop"))
    run.train("training.micro_batch=2", orders=at(5, "stop"))
    (warned,) = [entry for entry in run.entries(Warn) if entry.code == "resume.position"]
    assert "2 rows rather than 4" in warned.message and "epoch 0.21 rather than 0.43" in warned.message
    assert "0.21 epochs are trained again" in warned.message


@pytest.mark.parametrize("change", ["training.epochs=1", "training.micro_batch=16"])
def test_a_resume_with_nothing_left_is_refused(prepared: dict[str, Any], tmp_path: Path, change: str) -> None:
    run = Here(tmp_path, "run", prepared, *TWO_EPOCHS, "checkpoint.every_steps=3")
    run.train(orders=at(9, "stop"))
    with pytest.raises(ProblemError) as raised:
        run.train(change)
    problem = raised.value.problem
    assert problem.code == "resume.nothing_left" and "step 9 is done" in problem.cause
    assert not (run.run.path / "trained.json").exists() and len(run.entries(Start)) == 1


def test_a_finished_run_can_be_finished_again(prepared: dict[str, Any], tmp_path: Path) -> None:
    run = Here(tmp_path, "run", prepared, *TWO_EPOCHS, "checkpoint.every_steps=7")
    assert run.train() == ("completed", 14)
    (run.run.path / "trained.json").unlink()
    assert run.train() == ("completed", 14)
    assert (run.run.path / "trained.json").exists()


def test_no_steps_at_all_cannot_be_set_while_a_run_is_running(prepared: dict[str, Any], tmp_path: Path) -> None:
    run = Here(tmp_path, "run", prepared, *TWO_EPOCHS, "training.max_steps=20", "checkpoint.every_steps=9")
    run.train(orders=at(2, "set", changes={"training.max_steps": None}))
    (answer,) = run.answers
    assert answer.problem and answer.problem.code == "setting.refused" and "14 steps" in answer.problem.title


def test_tensorboard_has_no_step_twice_after_a_resume(prepared: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Here(tmp_path, "run", prepared, *TWO_EPOCHS, "checkpoint.every_steps=3", "logging.tensorboard=true")
    run.train(orders=at(5, "stop"))
    run.train(from_step=3)
    found = EventAccumulator(str(run.run.tensorboard), size_guidance={"scalars": 0})
    found.Reload()
    steps = [event.step for event in found.Scalars("train/loss")]
    assert steps == list(range(1, 15))
    values = {event.step: event.value for event in found.Scalars("train/loss")}
    assert values == pytest.approx(run.series("train/loss"))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_other_ranks_go_on_at_the_same_row(start_run: Any, before: int, after: int) -> None:
    settings = (*TWO_EPOCHS, "adapter.dropout=0", "checkpoint.every_steps=2", f"training.accumulation={2 // before}")
    whole = start_run("whole", *settings, f"launch.processes={before}")
    whole.start(processes=before)
    assert whole.wait() == 0, whole.log()
    assert whole.entries(Start)[-1].max_steps == 8

    moved = start_run("moved", *settings, f"launch.processes={before}")
    moved.start(processes=before)
    moved.until(lambda: len(moved.entries(Metrics)) >= 4)
    moved.process.kill()
    moved.process.wait()
    moved.start(processes=after)
    assert moved.wait() == 0, moved.log()
    start = moved.entries(Start)[-1]
    assert (start.processes, start.global_batch, start.max_steps) == (after, 8, 8)
    assert moved.series("train/loss") == pytest.approx(whole.series("train/loss"), rel=1e-3)
    assert [entry.code for entry in moved.entries(Warn)].count("resume.ranks_changed") == 1
    assert moved.entries(End)[-1].step == 8
