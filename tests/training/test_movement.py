"""Whether weights move is told of what this rank holds of them, and never stops a run."""

from __future__ import annotations

from typing import Any

import torch

from engine.models.quantization import count_values
from engine.training.movement import Movement
from engine.training.utilisation import count_operations


def make_model() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    model[1].requires_grad_(False)
    return model


def take(movement: Movement) -> float | None:
    movement.compare()
    return movement.take().get("train/weights_changed")


def test_the_share_of_changed_values_of_trained_weights() -> None:
    model = make_model()
    movement = Movement(model)
    assert take(movement) == 0.0 and movement.take() == {}
    with torch.no_grad():
        model[0].weight[:4] += 1.0
        model[1].weight += 1.0  # frozen
    assert take(movement) == 0.5


def test_weights_that_deepspeed_divides_are_compared_by_this_ranks_share() -> None:
    """They are empty between two passes, but for small ones, which are whole from the first pass on."""
    model = make_model()
    for layer in model:
        layer.weight.ds_tensor, layer.weight.ds_numel = layer.weight.detach().flatten()[:32].clone(), 64
        layer.weight.data = torch.empty(0)
    assert count_operations(model) == 4 * 128 + 2 * 64
    movement = Movement(model)
    model[0].weight.data = torch.ones(8, 8)
    assert take(movement) == 0.0
    model[0].weight.ds_tensor += 1.0
    assert take(movement) == 1.0


def test_nothing_is_said_of_weights_that_cannot_be_compared() -> None:
    model = make_model()
    movement = Movement(model)
    model[0].weight.data = torch.empty(0)
    assert take(movement) is None


def test_packed_and_divided_weights_are_counted_whole():
    packed = torch.zeros(6, dtype=torch.uint8)
    divided = torch.zeros(0)
    divided.ds_numel = 40  # type: ignore[attr-defined]
    assert (count_values(torch.zeros(2, 3)), count_values(packed), count_values(divided)) == (6, 12, 40)
