"""Optimisers and learning-rate shapes: they learn, follow a change while running, and go on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.options.training import TrainingOptions
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.training import optimizer_factory, schedule
from tests.training.harness import PROFILE, make_model
from tests.training.in_process import series, train

ON_CPU = ("adamw", "adam", "sgd", "adafactor", "muon")
RATES = {"sgd": 0.5}


def test_the_options_name_the_optimisers_and_schedulers_that_there_are() -> None:
    fields = TrainingOptions.model_fields
    assert set(fields["optimizer"].annotation.__args__) == {*ON_CPU, *optimizer_factory.GPU_ONLY}
    assert set(fields["scheduler"].annotation.__args__) == set(schedule.NAMES)


@pytest.mark.parametrize("name", sorted(optimizer_factory.GPU_ONLY))
def test_what_needs_a_gpu_is_refused_on_a_cpu_by_name(name: str, prepared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=name):
        train(Home(tmp_path), "run", prepared, f"training.optimizer={name}")


@pytest.mark.parametrize("name", ON_CPU)
def test_an_optimiser_learns_and_goes_on_bit_for_bit(name: str, prepared: dict[str, Any], tmp_path: Path) -> None:
    changes = (
        f"training.optimizer={name}",
        f"training.learning_rate={RATES.get(name, 0.01)}",
        "training.weight_decay=0.1",
        "training.epochs=2",
        "checkpoint.every_steps=6",
        "adapter={kind: none}",
    )
    run = train(Home(tmp_path), "run", prepared, *changes)
    losses = series(run, "train/loss")
    assert losses[14] < 0.97 * losses[1]
    train(Home(tmp_path), "run", prepared, *changes, from_step=12)
    assert series(run, "train/loss") == losses


def test_muon_makes_the_updates_of_hidden_matrices_orthogonal_and_of_no_others(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    settings = TrainingOptions(optimizer="muon", learning_rate=0.01)
    optimizer = optimizer_factory.make_optimizer(settings, model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ids = torch.arange(2, 40).view(2, 19)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    spread = {}
    for name, weight in model.named_parameters():
        change = weight.detach() - before[name]
        if change.ndim == 2:
            values = torch.linalg.svdvals(change)
            spread[name] = float(values[0] / values.median())
    orthogonal = {name for name, value in spread.items() if value < 4}
    assert orthogonal == {name for name in spread if "layers." in name}
    assert all("embed" in name or "lm_head" in name for name in spread.keys() - orthogonal)
    steps = {group["matrices"] for group in optimizer.param_groups}
    assert steps == {True, False}


def test_muon_goes_on_from_its_saved_state() -> None:
    import torch

    from engine.training.muon import MuonAdamW

    def made() -> tuple[list[Any], Any]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(6))]
        groups = [{"params": [weight], "matrices": weight.ndim == 2, "weight_decay": 0.1} for weight in weights]
        return weights, MuonAdamW(groups, 0.1)

    def walk(weights: list[Any], optimizer: Any, steps: range) -> None:
        for step in steps:
            for weight in weights:
                weight.grad = torch.cos(weight.detach() * (step + 1))
            optimizer.step()

    whole, optimizer = made()
    walk(whole, optimizer, range(4))
    first, optimizer = made()
    walk(first, optimizer, range(2))
    second, again = made()
    for weight, kept in zip(second, first, strict=True):
        weight.data.copy_(kept.data)
    again.load_state_dict(optimizer.state_dict())
    walk(second, again, range(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(whole, second, strict=True))


SHAPES = {
    "constant": [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "linear": [0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0],
    "polynomial": [0.5, 1, 0.875**2, 0.75**2, 0.625**2, 0.5**2, 0.375**2, 0.25**2, 0.125**2, 0],
    "cosine": [0.5, 1, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038, 0],
    "wsd": [0.5, 1, 1, 1, 1, 0.905, 0.655, 0.345, 0.095, 0],
}
"""Of ten steps, two of warm-up; the rate of the step after each."""


class Scheduled:
    """An optimiser of one weight under a schedule of ten steps."""

    def __init__(self, settings: TrainingOptions, base: float) -> None:
        import torch

        self.settings = settings
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
        self.schedule = schedule.make_schedule(settings, self.optimizer, 10)

    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> float:
        self.optimizer.step()
        self.schedule.step()
        return self.rate()

    def rebase(self, base: float) -> None:
        settings = self.settings.model_copy(update={"learning_rate": base})
        self.schedule = schedule.rebase_schedule(self.schedule, settings, 10)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shape_is_followed_and_keeps_its_form_when_the_rate_changes(name: str) -> None:
    settings = TrainingOptions(scheduler=name, warmup=2, decay_share=0.5)  # type: ignore[arg-type]
    run = Scheduled(settings, 0.1)
    rates = [run.step() / 0.1 for _ in range(5)]
    assert rates == pytest.approx(SHAPES[name][:5], abs=1e-3)
    run.rebase(0.02)
    assert run.rate() == pytest.approx(0.02 * SHAPES[name][4], abs=1e-5)
    rates = [run.step() / 0.02 for _ in range(5)]
    assert rates == pytest.approx(SHAPES[name][5:], abs=1e-3)


def test_wsd_without_room_for_its_warm_up_is_refused(prepared: dict[str, Any], tmp_path: Path) -> None:
    changes = ("training.scheduler=wsd", "training.warmup=0.3", "training.decay_share=0.8")
    with pytest.raises(ProfileError, match="no room for"):
        parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), changes, Home(tmp_path))
