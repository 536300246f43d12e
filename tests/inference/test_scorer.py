"""A reward model trained in 16 bits with an adapter in 32 scores as in training, alone or in a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.inference.scorer import Scorer
from engine.models.devices import Device
from engine.options.model import ModelOptions
from tests.training.harness import make_model
from tests.training.preferences import make_scorer


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter whose float32 values do not fit bfloat16, its head beside it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    place = tmp_path_factory.mktemp("reward")
    base = make_scorer(make_model(place / "base"), place / "scorer")
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="SEQ_CLS")
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    model.save_pretrained(place / "adapter")
    return base, place / "adapter"


def test_16_bits_and_an_adapter_in_32_score_together(reward: tuple[Path, Path]) -> None:
    import torch

    base, adapter = reward
    sequences = [[2, 9, 8, 7, 1, 3, 5, 1], [2, 5, 1, 3, 12, 13, 14, 15, 16, 17, 1]]

    def scorer(dtype: str) -> Scorer:
        device = Device("cpu", getattr(torch, dtype), "CPU")
        return Scorer(str(base), adapter, base, ModelOptions(dtype=dtype), device)

    exact, asked = scorer("float32"), scorer("bfloat16")
    scores = exact.scores(sequences)
    assert scores == pytest.approx([exact.scores([each])[0] for each in sequences], abs=1e-5)
    assert abs(scores[0] - scores[1]) > 0.02
    assert asked.scores(sequences) == pytest.approx(scores, abs=0.01)
