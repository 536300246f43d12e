"""The losses of a micro-batch without replies."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from engine.training.online.rollout import collate


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("grpo", {"loss_type": loss, "beta": 0.1}) for loss in ("grpo", "dr_grpo", "dapo")),
        ("grpo", {"importance_sampling_level": "sequence"}),
        ("rloo", {"beta": 0.1}),
    ],
)
@pytest.mark.parametrize("flat", [True, False])
def test_a_micro_batch_without_replies_adds_nothing(kind: str, options: Any, flat: bool) -> None:
    """A rank has none where the last global batch has fewer prompts than there are ranks."""
    method = importlib.import_module(f"engine.training.methods.{kind}").Options(
        reward={"task": "lows", "metric": "lows"}, generations=4, max_new_tokens=8, **options
    )
    values = torch.zeros(0, requires_grad=True)
    found = importlib.import_module(f"engine.training.online.{kind}").compute_losses(
        values, collate([], flat, mask_truncated=False), method
    )
    loss = found.pop("loss")
    loss.backward()
    assert float(loss.detach()) == 0 and values.grad is not None
    assert [(float(total), float(count)) for total, count in found.values()] == [(0.0, 0.0)] * len(found)
