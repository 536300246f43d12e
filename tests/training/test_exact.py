"""Every later loss is bit for bit that of a run never interrupted, and a resume says so, or what is different."""

from __future__ import annotations

import json
import signal

import pytest

from engine.protocol.journal import Ledger, Start
from engine.storage import manifest
from tests.training.here import Here, at, one_after_another

MANY = (
    "adapter.dropout=0.3",
    "training.epochs=3",
    "training.micro_batch=2",
    "training.accumulation=2",
    "checkpoint.every_steps=3",
    "checkpoint.keep=20",
    "evaluation.every_steps=5",
)
LOSSES = ("train/loss", "train/grad_norm", "train/learning_rate")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, prepared) -> Here:
    run = Here(tmp_path_factory.mktemp("whole"), "whole", prepared, *MANY)
    assert run.train() == ("completed", 21)
    return run


def _same(run: Here, other: Here) -> None:
    for name in LOSSES:
        assert run.series(name) == other.series(name), name


def test_stopped_anywhere_and_resumed_is_exact(whole, tmp_path, prepared):
    """In the middle of an epoch, at its end, beside an evaluation, beside a checkpoint."""
    run = Here(tmp_path, "broken", prepared, *MANY)
    for step in (2, 7, 10, 14):
        assert run.train(orders=at(step, "stop")) == ("stopped", step)
    assert run.train() == ("completed", 21)
    _same(run, whole)
    assert [entry.resumed for entry in run.entries(Start)] == ["", *["exact"] * 4]
    assert (run.run.checkpoint(21) / "adapter_model.safetensors").read_bytes() == (
        whole.run.checkpoint(21) / "adapter_model.safetensors"
    ).read_bytes()


def test_sums_not_yet_reported_survive(tmp_path, prepared):
    """A mean over four steps of which two were before the stop."""
    changes = (*MANY, "logging.every_steps=4")
    whole, run = (Here(tmp_path, name, prepared, *changes) for name in ("whole", "broken"))
    whole.train()
    run.train(orders=lambda run: [("stop", {})] if run.run.checkpoint(6).exists() else [])
    run.train()
    _same(run, whole)


def test_a_rehearsal_leaves_no_trace(whole, tmp_path, prepared):
    run = Here(tmp_path, "unrehearsed", prepared, *MANY, "training.rehearsal=false")
    run.train()
    _same(run, whole)
    for other in (run, whole):
        assert not list(other.run.checkpoints.glob(".*"))
    left, right = (json.loads((r.run.checkpoint(3) / "trainer" / "fingerprint.json").read_text()) for r in (run, whole))
    assert left == right


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_rehearsal_leaves_no_trace_in_full_tuning(optimizer, tmp_path, prepared):
    changes = (
        "adapter={kind: none}",
        f"training.optimizer={optimizer}",
        "training.weight_decay=0.1",
        "training.max_steps=4",
    )
    found = []
    for rehearsal in ("true", "false"):
        run = Here(tmp_path, f"{optimizer}-{rehearsal}", prepared, *changes, f"training.rehearsal={rehearsal}")
        run.train()
        found.append(run)
    _same(*found)


def test_from_an_earlier_checkpoint_only_what_was_changed_before_is_replayed(tmp_path, prepared):
    run = Here(tmp_path, "changed", prepared, *MANY, "training.scheduler=constant", "training.warmup=0")
    change = {"changes": {"training.learning_rate": 0.001}}
    later = {"changes": {"training.learning_rate": 0.0001, "training.max_grad_norm": 0.5}}
    assert run.train(orders=one_after_another(at(4, "set", **change), at(8, "set", **later))) == ("completed", 21)
    assert {4, 8} <= set(run.run.checkpoint_steps())  # each change preceded by a checkpoint
    rates = run.series("train/learning_rate")
    assert [rates[step] for step in (4, 5, 8, 9)] == [0.01, 0.001, 0.001, 0.0001]
    ledger = [(entry.step, entry.name, entry.old, entry.new) for entry in run.entries(Ledger)]
    assert ledger == [
        (4, "training.learning_rate", 0.01, 0.001),
        (8, "training.learning_rate", 0.001, 0.0001),
        (8, "training.max_grad_norm", 1.0, 0.5),
    ]
    first = run.series("train/loss")
    # From step 6 the change of step 4 counts and those of step 8 do not.
    run.train(from_step=6, orders=at(11, "stop"))
    rates = run.series("train/learning_rate")
    assert [rates[step] for step in (7, 9, 11)] == [0.001, 0.001, 0.001]
    assert [run.series("train/loss")[step] for step in (7, 8)] == [first[7], first[8]]
    assert run.entries(Start)[-1].resumed == "exact"
    # The way now leads over step 11, although later checkpoints of the first attempt are still there.
    run.train(orders=at(13, "stop"))
    assert run.entries(Start)[-1].step == 11 and run.series("train/learning_rate")[12] == 0.001
    # As the checkpoint of step 4 was written: before the change made there.
    run.train(from_step=4, orders=at(6, "stop"))
    assert run.series("train/learning_rate")[5] == 0.01


def test_a_change_made_after_the_newest_checkpoint_is_replayed(whole, tmp_path, prepared):
    """Killed right after a `set`: the checkpoint before it does not hold it, the ledger does."""
    run = Here(tmp_path, "killed", prepared, *MANY, "training.scheduler=constant", "training.warmup=0")

    def orders(run):
        if any(entry.name == "training.learning_rate" for entry in run.entries(Ledger)):
            raise KeyboardInterrupt  # the process is gone before another step
        return [("set", {"changes": {"training.learning_rate": 0.001}})] if run.step() == 4 else []

    with pytest.raises(KeyboardInterrupt):
        run.train(orders=orders)
    run.train(orders=at(6, "stop"))
    assert run.entries(Start)[-1].step == 4 and run.series("train/learning_rate")[5] == 0.001
    # Asked for anew in the profile: that wins.
    run.train("training.learning_rate=0.005", orders=at(8, "stop"))
    assert run.series("train/learning_rate")[7] == 0.005
    assert "training.learning_rate 0.001 → 0.005" in run.entries(Start)[-1].resumed


def test_a_finished_run_is_extended(tmp_path, prepared):
    run = Here(tmp_path, "longer", prepared, "training.epochs=1", "checkpoint.keep=9")
    assert run.train() == ("completed", 7)
    assert run.train() == ("completed", 7)  # nothing to do, and no harm
    assert run.train("training.epochs=2") == ("completed", 14)
    rates = run.series("train/learning_rate")
    fresh = Here(tmp_path, "fresh", prepared, "training.epochs=2")
    fresh.train()
    # The shape is that of a run of this length from the start.
    assert [rates[step] for step in range(8, 15)] == [fresh.series("train/learning_rate")[s] for s in range(8, 15)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("training.seed=7",), "the next batch holds other rows"),
        (("training.threads=2",), "threads per rank 1 → 2"),
        (("training.micro_batch=1", "training.accumulation=4"), "training.micro_batch 2 → 1"),
    ],
)
def test_what_drifted_is_named(changes, said, tmp_path, prepared):
    import torch

    run = Here(tmp_path, "drift", prepared, *MANY)
    run.train(orders=at(4, "stop"))
    run.train(*changes, orders=at(5, "stop"))
    torch.set_num_threads(1)
    assert said in run.entries(Start)[-1].resumed


def test_other_versions_and_other_files_are_named(tmp_path, prepared):
    run = Here(tmp_path, "edited", prepared, *MANY)
    run.train(orders=at(4, "stop"))
    path = run.run.checkpoint(4) / "trainer" / "fingerprint.json"
    then = json.loads(path.read_text())
    path.write_text(json.dumps(then | {"versions": then["versions"] | {"torch": "1.0"}, "optimiser": "0"}))
    checkpoint = run.run.checkpoint(4)
    facts = {name: value for name, value in manifest.read(checkpoint).items() if name != "files"}
    manifest.write(checkpoint, **facts)  # or it would be a damaged file
    run.train(orders=at(5, "stop"))
    resumed = run.entries(Start)[-1].resumed
    assert "torch 1.0 → " in resumed and "the optimiser read back differs" in resumed


@pytest.mark.slow
def test_killed_in_every_part_of_a_step_and_resumed_is_exact(whole, start_run):
    """kill -9 in the middle of a global batch, of a save, of an evaluation, and at an epoch's end."""
    run = start_run("killed", *MANY)
    for fault in ("compute:4", "save:6", "boundary:7", "evaluate:10"):
        run.start(fault=fault)
        assert run.wait() == -signal.SIGKILL, run.log()
    run.train()
    for name in LOSSES:
        assert run.series(name) == whole.series(name), name
    assert [entry.step for entry in run.entries(Start)] == [0, 3, 3, 6, 9]
    assert [entry.resumed for entry in run.entries(Start)][1:] == ["exact"] * 4


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_are_exact(start_run):
    runs = []
    for name, fault in (("whole", ""), ("killed", "compute:5")):
        run = start_run(name, *MANY, "training.micro_batch=1", "launch.processes=2")
        if fault:
            run.start(processes=2, fault=fault)
            assert run.wait() != 0
        run.train(processes=2)
        runs.append(run)
    whole, killed = runs
    assert killed.entries(Start)[-1].resumed == "exact" and killed.entries(Start)[-1].step == 3
    for name in LOSSES:
        assert killed.series(name) == whole.series(name), name
