"""The average of the weights is what is evaluated and saved; training itself does not see it. Early stopping counts
evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.options.evaluation import EarlyStoppingOptions
from engine.protocol.home import Home, RunDirectory
from engine.protocol.journal import Evaluation, Ledger, Start
from engine.protocol.messages import ProblemError
from engine.training.early_stopping import FILE, Patience
from tests.training.harness import PROFILE
from tests.training.in_process import entries, series, train

EVERY = ("evaluation.every_steps=2", "checkpoint.every_steps=2", "checkpoint.keep=9", "training.max_steps=6")
FULL = "adapter={kind: none}"


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def losses(run: RunDirectory) -> dict[int, float]:
    return {entry.step: entry.values["eval/loss"] for entry in entries(run, Evaluation)}


@pytest.mark.parametrize("more", [(), (FULL,), (FULL, "model.dtype=bfloat16")], ids=["lora", "full", "full-16-bit"])
def test_the_average_is_saved_and_evaluated_and_training_goes_on_bit_for_bit(
    more: tuple[str, ...], prepared: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    home = Home(tmp_path)
    plain = train(home, "plain", prepared, *EVERY, *more)
    changes = (*EVERY, *more, "training.ema={decay: 0.5}")
    whole = train(home, "whole", prepared, *changes)
    assert series(whole, "train/loss") == series(plain, "train/loss")
    assert losses(whole) != losses(plain)

    first, second = torch.load(whole.checkpoint(2) / "trainer" / "masters.pt"), plain.checkpoint(2)
    kept = torch.load(whole.checkpoint(2) / "trainer" / "ema.pt")
    assert all(average.dtype == torch.float32 for average in kept.values())
    for name, weight in tensors(second).items():
        stored = tensors(whole.checkpoint(2))[name]
        there = next(each for each in first if each.replace(".default", "") == name)
        assert torch.equal(first[there].to(weight.dtype), weight)  # what is trained is what the plain run trained
        assert torch.equal(kept[there].to(stored.dtype), stored)  # what is saved is the average
    assert any(not torch.equal(first[name], kept[name]) for name in kept)

    broken = train(home, "broken", prepared, *changes)
    train(home, "broken", prepared, *changes, from_step=4)
    assert entries(broken, Start)[-1].resumed.startswith("exact")
    assert series(broken, "train/loss") == series(whole, "train/loss")
    assert losses(broken) == losses(whole)
    ours, theirs = tensors(broken.checkpoint(6)), tensors(whole.checkpoint(6))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_average_is_that_of_the_weights() -> None:
    import torch

    from engine.training.ema import WeightAverages

    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    averages = WeightAverages(model, 0.9)
    model.weight.data.fill_(1.0)
    averages.update(1)  # keeps 2 / 11
    assert float(averages.values["weight"]) == pytest.approx(9 / 11)
    averages.update(1000)  # keeps 0.9
    with averages.swap_in():
        assert float(model.weight) == pytest.approx(1 - 0.9 * 2 / 11)
    assert float(model.weight) == 1.0


def test_a_run_that_no_longer_gets_better_ends_with_a_checkpoint_and_says_why(
    prepared: dict[str, Any], tmp_path: Path
) -> None:
    home = Home(tmp_path)
    changes = (
        "training.max_steps=40",
        "training.learning_rate=1.0e-9",
        "training.scheduler=constant",
        "evaluation.every_steps=2",
        "evaluation.early_stopping={patience: 3, min_delta: 0.001}",
        "data.validation=[{source: triples/dev.jsonl}]",
    )
    run = train(home, "run", prepared, *changes)
    assert list(losses(run)) == [2, 4, 6, 8]
    assert run.checkpoint_steps() == [8]
    said = [entry for entry in entries(run, Ledger) if entry.name == "early stopping"]
    assert [entry.step for entry in said] == [8]
    assert said[0].new == "eval/loss has not been better than at step 2 for 3 evaluations"
    assert "completed" in run.report.read_text()


def test_patience_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    options = EarlyStoppingOptions(patience=3, metric="eval/f1", min_delta=0.1)
    first = Patience(options)
    values = [0.5, 0.55, 0.61, 0.6, 0.7]
    assert [bool(first.update(step, {"eval/f1": value})) for step, value in enumerate(values)] == [False] * 5
    (tmp_path / FILE).write_text(first.to_text())
    second = Patience(options)
    second.load(tmp_path)
    assert second.update(5, {"eval/f1": None}).startswith("eval/f1 has not been better than at step 2 for 3")
    other = Patience(EarlyStoppingOptions(patience=3))
    other.load(tmp_path)
    assert not other.update(6, {"eval/loss": 2.0})
    with pytest.raises(ProblemError, match="eval/loss"):
        other.update(7, {"eval/f1": 1.0})


def test_early_stopping_without_held_out_rows_is_refused(prepared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="early_stopping"):
        parse(
            PROFILE.format(base=prepared["base"]),
            "test",
            Path("/"),
            ("evaluation.early_stopping={}",),
            Home(tmp_path),
        )
