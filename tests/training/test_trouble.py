"""What goes wrong pauses a run or refuses it, in words; nothing acknowledged is lost, nothing half written stays."""

from __future__ import annotations

import pytest

from engine.config.profile import ProfileError
from engine.protocol.journal import End, Ledger, Metrics, Warn


def _paused(run) -> list[str]:
    return [entry.new for entry in run.entries(Ledger) if entry.name == "pause"]


@pytest.mark.slow
def test_a_full_disk_pauses_and_goes_on_when_there_is_room(start_run):
    run = start_run("full", "training.max_steps=100000", "training.rehearsal=false")
    run.start(limit=6000)  # bytes a file: the journal is full after some twenty lines
    run.until(lambda: any("disk low" in beat.rank.phase for beat in run.heard if type(beat).__name__ == "Heartbeat"))
    steps = [entry.step for entry in run.entries(Metrics)]
    assert steps == list(range(1, steps[-1] + 1))
    import resource

    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.until(lambda: len(run.entries(Metrics)) > len(steps) + 5)
    run.ask("stop")
    assert run.wait() == 0
    told = [entry.step for entry in run.entries(Metrics)]
    assert told == list(range(1, told[-1] + 1))
    assert "disk low" in _paused(run)[0]
    assert run.entries(Ledger)[1].name == "continue"


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_pauses_and_is_then_written(start_run):
    run = start_run(
        "big", "training.max_steps=6", "checkpoint.every_steps=3", "adapter.rank=32", "training.rehearsal=false"
    )
    run.start(limit=50_000)
    run.until(lambda: _paused(run))
    assert "checkpoint cannot be written" in _paused(run)[0]
    assert run.run.checkpoint_steps() == [] and not list(run.run.checkpoints.glob(".step*"))
    import resource

    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert run.wait() == 0
    assert run.run.checkpoint_steps() == [3, 6]


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_pauses_and_spares_the_weights(start_run):
    run = start_run("nan", "training.max_steps=100000", "training.learning_rate=1.0e30", "training.max_grad_norm=0.0")
    run.start()
    run.until(lambda: _paused(run))
    assert _paused(run)[0] in ("gradient not finite", "loss not finite")
    assert "not been applied" in run.entries(Warn)[-1].message
    run.ask("stop")
    assert run.wait() == 0
    assert run.entries(End)[-1].status == "stopped"


@pytest.mark.slow
def test_two_ranks_take_commands_at_one_step_and_report_stacks(start_run):
    run = start_run("ranks", "training.max_steps=100000", "launch.processes=2")
    run.start(processes=2)
    run.until(lambda: run.series("train/loss"))
    run.ask("stacks")
    paused = run.ask("pause")
    run.until(lambda: run.run.log.read_text().count("most recent call first") >= 4)
    last = max(run.series("train/loss"))
    assert last == paused.step
    assert run.ask("continue").step == paused.step
    run.until(lambda: max(run.series("train/loss")) > last)
    stopped = run.ask("stop")
    assert run.wait() == 0
    assert run.run.checkpoint_steps() == [stopped.step]
    assert {beat.rank.rank for beat in run.heard if type(beat).__name__ == "Heartbeat"} == {0, 1}


@pytest.mark.slow
def test_refusals_are_problems_with_a_mend(start_run, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    for name, change, words in (
        ("eight-bit", "training.optimizer=paged_adamw_8bit", "needs a GPU"),
        ("output", f"checkpoint.output={tmp_path / 'kept'}", "not empty"),
    ):
        run = start_run(name, change)
        run.start()
        assert run.wait() == 1
        end = run.entries(End)[-1]
        assert end.status == "failed" and words in end.problem.title and end.problem.hint, end
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["mine.txt"]
    with pytest.raises(ProfileError, match=r"no layer of .* is called nothing"):
        start_run("targets", "adapter.targets=[nothing]")
